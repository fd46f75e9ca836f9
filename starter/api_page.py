"""`GET /docs`: the OpenAPI document as a page to read.

Made here and not by a script from another host: whatever runs on a page of this site can see an open dashboard.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from starter.public_pages import FOR_MINUTES
from starter.services import Serving

router = APIRouter(include_in_schema=False)

_REFERENCE = "#/components/schemas/"

Part = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value is, in words, and the name of the object that it is or holds, where there is one."""

    words: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an object, or a parameter of a call; `place` says where a parameter stands."""

    name: str
    kind: Kind
    required: bool
    words: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a call."""

    status: str
    words: str
    kind: Kind | None


@dataclass(frozen=True, slots=True)
class Call:
    """One call; `with_key` where it takes an API key."""

    method: str
    path: str
    words: str
    with_key: bool
    parameters: tuple[Field, ...]
    body: Kind | None
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """An object that is sent or answered, or a word of several that are possible."""

    name: str
    words: str
    kind: Kind
    fields: tuple[Field, ...]


@router.head("/docs")
@router.get("/docs")
async def get_api_page(request: Request, services: Serving) -> Response:
    """Every call, what it takes and what it answers."""
    document: dict[str, Any] = request.app.openapi()
    return services.site.page(
        request,
        "api.html",
        cache=FOR_MINUTES,
        title=document["info"]["title"],
        version=document["info"]["version"],
        calls=tuple(_calls(document)),
        shapes=tuple(_shape(name, shape) for name, shape in sorted(document["components"]["schemas"].items())),
    )


def _calls(document: Part) -> Iterator[Call]:
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            yield Call(
                method=method.upper(),
                path=path,
                words=call.get("description", ""),
                with_key=bool(call.get("security")),
                parameters=tuple(_parameter(each) for each in call.get("parameters", ())),
                body=_content(call.get("requestBody", {})),
                answers=tuple(
                    Answer(status, answer["description"], _content(answer))
                    for status, answer in sorted(call["responses"].items())
                ),
            )


def _parameter(parameter: Part) -> Field:
    kind = _kind(parameter["schema"])
    words = parameter.get("description", "")
    return Field(parameter["name"], kind, parameter.get("required", False), words, parameter["in"])


def _content(sent: Part) -> Kind | None:
    """What is sent as a body, if anything that is described."""
    return next((_kind(each["schema"]) for each in sent.get("content", {}).values() if each.get("schema")), None)


def _shape(name: str, shape: Part) -> Shape:
    required = shape.get("required", ())
    fields = tuple(
        Field(field, _kind(each), field in required, each.get("description", ""))
        for field, each in shape.get("properties", {}).items()
    )
    return Shape(name, shape.get("description", ""), _kind(shape), fields)


def _kind(schema: Part) -> Kind:
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix(_REFERENCE)
        return Kind(name, name)
    if "anyOf" in schema:
        kinds = [_kind(each) for each in schema["anyOf"]]
        return Kind(" or ".join(kind.words for kind in kinds), next((kind.name for kind in kinds if kind.name), None))
    if "enum" in schema:
        return Kind(", ".join(map(str, schema["enum"])))
    if schema.get("type") == "array":
        items = _kind(schema.get("items", {}))
        return Kind(f"list of {items.words}", items.name)
    return Kind(schema.get("format") or schema.get("type") or "anything")
