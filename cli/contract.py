"""Whether callers of a released HTTP interface can go on with this one: their OpenAPI documents, compared.

Answers may gain fields, never lose or rename one; requests may gain what is optional, and are never narrowed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Schema = Mapping[str, Any]

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_SHAPES = ("pattern", "format", "const", "multipleOf", "uniqueItems")

DEEPEST = 24
"""How deep schemas are followed; ours are never that deep, and one that holds itself ends there."""


@dataclass
class Compared:
    """What is different.

    Args:
        breaks: what some caller cannot go on with, each in a line.
        additions: what is new, and harms nobody.
    """

    breaks: list[str] = field(default_factory=list)
    additions: list[str] = field(default_factory=list)


def document_of_this_code() -> dict[str, Any]:
    """The OpenAPI document of this code; nothing is connected to and no settings are needed."""
    from starter.app import described

    return described()


def text_of(document: Mapping[str, Any]) -> str:
    """A document as it stands in a file: in one order, so that changes of it can be read."""
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def compare(released: Mapping[str, Any], here: Mapping[str, Any]) -> Compared:
    """Compare a released document with that of the code at hand."""
    return _Comparison(released, here).whole()


class _Comparison:
    def __init__(self, released: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        self._released = released
        self._here = here
        self._found = Compared()

    def whole(self) -> Compared:
        paths, new_paths = self._released.get("paths", {}), self._here.get("paths", {})
        for path, methods in paths.items():
            if path not in new_paths:
                self._break(f"{path} is gone")
                continue
            for method in filter(methods.__contains__, METHODS):
                call = f"{method.upper()} {path}"
                if method not in new_paths[path]:
                    self._break(f"{call} is gone")
                else:
                    self._call(call, (methods, methods[method]), (new_paths[path], new_paths[path][method]))
        for path, methods in new_paths.items():
            for method in filter(methods.__contains__, METHODS):
                if method not in paths.get(path, {}):
                    self._found.additions.append(f"{method.upper()} {path}")
        return self._found

    def _break(self, words: str) -> None:
        if words not in self._found.breaks:
            self._found.breaks.append(words)

    def _add(self, words: str) -> None:
        if words not in self._found.additions:
            self._found.additions.append(words)

    def _call(self, call: str, old: tuple[Schema, Schema], new: tuple[Schema, Schema]) -> None:
        (old_path, then), (new_path, now) = old, new
        self._security(call, then, now)
        self._parameters(
            call,
            self._named((*old_path.get("parameters", ()), *then.get("parameters", ())), self._released),
            self._named((*new_path.get("parameters", ()), *now.get("parameters", ())), self._here),
        )
        self._body(call, then.get("requestBody"), now.get("requestBody"))
        self._responses(call, then.get("responses", {}), now.get("responses", {}))

    def _security(self, call: str, then: Schema, now: Schema) -> None:
        accepted = now.get("security", self._here.get("security", []))
        for way in then.get("security", self._released.get("security", [])) or [{}]:
            # One of those that are accepted must ask for nothing more than this one gives.
            if accepted and not any(set(other) <= set(way) for other in accepted):
                given = " and ".join(way) or "no credentials"
                self._break(f"{call}: {given} no longer lets a caller in")

    def _named(self, parameters: Sequence[Schema], document: Schema) -> dict[tuple[str, str], Schema]:
        whole = [_resolved(each, document) for each in parameters]
        return {(each["in"], each["name"]): each for each in whole}

    def _parameters(
        self, call: str, then: Mapping[tuple[str, str], Schema], now: Mapping[tuple[str, str], Schema]
    ) -> None:
        for (place, name), old in then.items():
            what = f"{call}: {place} parameter {name}"
            new = now.get((place, name))
            if new is None:
                self._break(f"{what} is gone")
                continue
            if new.get("required") and not old.get("required"):
                self._break(f"{what} is required now")
            self._given(what, old.get("schema", {}), new.get("schema", {}))
        for (place, name), new in now.items():
            if (place, name) not in then:
                what = f"{call}: {place} parameter {name}"
                if new.get("required"):
                    self._break(f"{what} is new and required")
                else:
                    self._add(what)

    def _body(self, call: str, then: Schema | None, now: Schema | None) -> None:
        if then is None:
            if now is not None and now.get("required"):
                self._break(f"{call}: a body is new and required")
            return
        if now is None:
            self._break(f"{call}: the body is gone")
            return
        if now.get("required") and not then.get("required"):
            self._break(f"{call}: the body is required now")
        for kind, content in then.get("content", {}).items():
            if kind not in now.get("content", {}):
                self._break(f"{call}: a body of type {kind} is no longer accepted")
            else:
                self._given(f"{call}: body", content.get("schema", {}), now["content"][kind].get("schema", {}))

    def _responses(self, call: str, then: Mapping[str, Schema], now: Mapping[str, Schema]) -> None:
        for status, old in then.items():
            if status not in now:
                # An error that does not come any more harms nobody.
                if status.startswith(("2", "3")):
                    self._break(f"{call}: the answer {status} is gone")
                continue
            old, new = _resolved(old, self._released), _resolved(now[status], self._here)
            for kind, content in old.get("content", {}).items():
                if kind not in new.get("content", {}):
                    self._break(f"{call}: the answer {status} is no longer {kind}")
                else:
                    what = f"{call}: answer {status}"
                    self._told(what, content.get("schema", {}), new["content"][kind].get("schema", {}))
            for name in old.get("headers", {}):
                if name not in new.get("headers", {}):
                    self._break(f"{call}: answer {status}: the header {name} is gone")
        for status in now:
            if status not in then:
                if status.startswith(("2", "3")) and any(each.startswith(("2", "3")) for each in then):
                    self._break(f"{call}: the answer {status} is new, and no caller knows what it means")
                else:
                    self._add(f"{call}: answer {status}")

    def _given(self, what: str, old: Schema, new: Schema, depth: int = 0) -> None:
        """Whatever a caller gave must still be accepted."""
        if depth > DEEPEST:
            return
        olds, news = list(_kinds(old, self._released)), list(_kinds(new, self._here))
        for kind, then in olds:
            fitting = [now for other, now in news if _fits(kind, other)]
            if not fitting:
                self._break(f"{what} may no longer be {kind}")
            elif len(fitting) == 1 or len(olds) == len(news) == 1:
                self._narrowed(what, then, fitting[0], wider=False)
                self._given_inside(what, then, fitting[0], depth)

    def _given_inside(self, what: str, then: Schema, now: Schema, depth: int) -> None:
        properties, new_properties = then.get("properties", {}), now.get("properties", {})
        closed = now.get("additionalProperties") is False
        for name, inside in properties.items():
            if name in new_properties:
                self._given(f"{what}.{name}", inside, new_properties[name], depth + 1)
            elif closed:
                self._break(f"{what}.{name} is no longer accepted")
            else:
                self._break(f"{what}.{name} is no longer read")
        if closed and then.get("additionalProperties") is not False and "properties" in then:
            self._break(f"{what} no longer accepts further fields")
        for name in now.get("required", ()):
            if name not in then.get("required", ()):
                known = "is required now" if name in properties else "is new and required"
                self._break(f"{what}.{name} {known}")
        for name in new_properties:
            if name not in properties and name not in now.get("required", ()):
                self._add(f"{what}.{name}")
        if "items" in now:
            self._given(f"{what}[]", then.get("items", {}), now["items"], depth + 1)
        if isinstance(now.get("additionalProperties"), Mapping):
            self._given(f"{what}.*", _free(then), now["additionalProperties"], depth + 1)

    def _told(self, what: str, old: Schema, new: Schema, depth: int = 0) -> None:
        """Whatever a caller could rely on in an answer must still be so."""
        if depth > DEEPEST:
            return
        olds, news = list(_kinds(old, self._released)), list(_kinds(new, self._here))
        for kind, now in news:
            fitting = [then for other, then in olds if _fits(kind, other)]
            if not fitting:
                self._break(f"{what} may be {kind} now")
            elif len(fitting) == 1 or len(olds) == len(news) == 1:
                self._narrowed(what, fitting[0], now, wider=True)
                self._told_inside(what, fitting[0], now, depth)

    def _told_inside(self, what: str, then: Schema, now: Schema, depth: int) -> None:
        properties, new_properties = then.get("properties", {}), now.get("properties", {})
        for name, inside in properties.items():
            if name not in new_properties:
                self._break(f"{what}.{name} is gone")
                continue
            if name in then.get("required", ()) and name not in now.get("required", ()):
                self._break(f"{what}.{name} may be left out now")
            self._told(f"{what}.{name}", inside, new_properties[name], depth + 1)
        for name in new_properties:
            if name not in properties:
                self._add(f"{what}.{name}")
        if "items" in then:
            self._told(f"{what}[]", then["items"], now.get("items", {}), depth + 1)
        if isinstance(then.get("additionalProperties"), Mapping):
            self._told(f"{what}.*", then["additionalProperties"], _free(now), depth + 1)

    def _narrowed(self, what: str, then: Schema, now: Schema, *, wider: bool) -> None:
        """Limits: a request's may only become wider, an answer's (`wider`) only narrower."""
        strict, loose = (then, now) if wider else (now, then)
        verb = "may now be beyond its" if wider else "is held to a new"
        for name in (*_LOWER, *_UPPER):
            if name not in strict:
                continue
            bound, other = strict[name], loose.get(name)
            if other is None or (bound > other if name in _LOWER else bound < other):
                self._break(f"{what} {verb} {name} of {bound}")
        for name in _SHAPES:
            if name in strict and strict[name] != loose.get(name) and not (name == "uniqueItems" and not strict[name]):
                self._break(f"{what} {'no longer keeps to' if wider else 'is held to'} {name} {strict[name]}")
        if "enum" in strict:
            for value in loose.get("enum", ("anything",)):
                if value not in strict["enum"]:
                    self._break(f"{what} {'may now be' if wider else 'may no longer be'} {json.dumps(value)}")


def _resolved(schema: Schema, document: Schema) -> Schema:
    """A schema, followed through its references."""
    for _ in range(DEEPEST):
        if "$ref" not in schema:
            return schema
        place: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            place = place[step.replace("~1", "/").replace("~0", "~")]
        schema = {**place, **{name: value for name, value in schema.items() if name != "$ref"}}
    return schema


def _kinds(schema: Schema, document: Schema, depth: int = 0) -> Iterator[tuple[str, Schema]]:
    """Each type that a value may have, with what holds of it."""
    schema = _resolved(schema, document)
    others = {name: value for name, value in schema.items() if name not in ("anyOf", "oneOf", "allOf")}
    parts = [part for name in ("anyOf", "oneOf") for part in schema.get(name, ())]
    if "allOf" in schema and depth < DEEPEST:
        merged: dict[str, Any] = dict(others)
        for part in schema["allOf"]:
            for name, value in _resolved(part, document).items():
                if name == "properties":
                    merged[name] = {**merged.get(name, {}), **value}
                elif name == "required":
                    merged[name] = [*merged.get(name, ()), *value]
                else:
                    merged[name] = value
        yield from _kinds(merged, document, depth + 1)
    elif parts and depth < DEEPEST:
        for part in parts:
            yield from _kinds(part, document, depth + 1)
    else:
        types = others.get("type", _implied(others))
        for kind in [types] if isinstance(types, str) else types:
            yield kind, others


def _implied(schema: Schema) -> str:
    if "properties" in schema:
        return "object"
    if "items" in schema:
        return "array"
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return "string" if values and all(isinstance(value, str) for value in values) else "anything"


def _fits(kind: str, into: str) -> bool:
    return kind == into or into == "anything" or (kind == "integer" and into == "number")


def _free(schema: Schema) -> Schema:
    free = schema.get("additionalProperties", {})
    return free if isinstance(free, Mapping) else {}
