"""The comparison of two OpenAPI documents: each kind of break is named, and nothing else is."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cli.contract import compare, document_of_this_code

RELEASED: dict[str, Any] = {
    "openapi": "3.1.0",
    "paths": {
        "/things/{id}": {
            "put": {
                "security": [{"key": []}],
                "parameters": [
                    {"in": "path", "name": "id", "required": True, "schema": {"type": "string", "maxLength": 50}},
                    {"in": "query", "name": "limit", "schema": {"type": "integer", "maximum": 100}},
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}},
                },
                "responses": {
                    "200": {
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}},
                        "headers": {"ETag": {"schema": {"type": "string"}}},
                    },
                    "404": {"content": {"application/problem+json": {"schema": {"type": "object"}}}},
                },
            },
            "get": {"responses": {"200": {"content": {"text/plain": {"schema": {"type": "string"}}}}}},
        }
    },
    "components": {
        "schemas": {
            "Order": {
                "type": "object",
                "required": ["email"],
                "properties": {
                    "email": {"type": "string"},
                    "note": {"anyOf": [{"type": "string", "maxLength": 10}, {"type": "null"}]},
                    "colour": {"type": "string", "enum": ["red", "green"]},
                },
            },
            "Thing": {
                "type": "object",
                "required": ["id", "stage"],
                "properties": {
                    "id": {"type": "string", "maxLength": 50},
                    "stage": {"enum": ["open", "closed"]},
                    "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Part"}},
                    "totals": {"type": "object", "additionalProperties": {"type": "integer"}},
                },
            },
            "Part": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "inside": {"$ref": "#/components/schemas/Part"}},
            },
        }
    },
}


@dataclass
class Parts:
    """Of a document: a call, what its request holds, what its answer holds."""

    call: Any
    order: Any
    thing: Any


Change = Callable[[Parts], object]

PUT = "PUT /things/{id}"

BREAKS: dict[str, Change] = {
    f"{PUT}: path parameter id is held to a new maxLength of 20": lambda it: it.call["parameters"][0]["schema"].update(
        maxLength=20
    ),
    f"{PUT}: path parameter id is held to pattern ^a": lambda it: it.call["parameters"][0]["schema"].update(
        pattern="^a"
    ),
    f"{PUT}: query parameter limit is gone": lambda it: it.call["parameters"].pop(),
    f"{PUT}: query parameter limit is required now": lambda it: it.call["parameters"][1].update(required=True),
    f"{PUT}: query parameter limit is held to a new maximum of 50": lambda it: it.call["parameters"][1][
        "schema"
    ].update(maximum=50),
    f"{PUT}: query parameter limit may no longer be integer": lambda it: it.call["parameters"][1]["schema"].update(
        type="string"
    ),
    f"{PUT}: query parameter more is new and required": lambda it: it.call["parameters"].append(
        {"in": "query", "name": "more", "required": True, "schema": {"type": "string"}}
    ),
    f"{PUT}: key no longer lets a caller in": lambda it: it.call.update(security=[{"other": []}]),
    f"{PUT}: the body is gone": lambda it: it.call.pop("requestBody"),
    f"{PUT}: a body of type application/json is no longer accepted": lambda it: it.call["requestBody"].update(
        content={"text/xml": {}}
    ),
    f"{PUT}: body.name is new and required": lambda it: (
        it.order["required"].append("name"),
        it.order["properties"].update(name={"type": "string"}),
    ),
    f"{PUT}: body.note is required now": lambda it: it.order["required"].append("note"),
    f"{PUT}: body.note may no longer be null": lambda it: it.order["properties"].update(
        note={"type": "string", "maxLength": 10}
    ),
    f"{PUT}: body.note is held to a new maxLength of 5": lambda it: it.order["properties"]["note"]["anyOf"][0].update(
        maxLength=5
    ),
    f"{PUT}: body.note is no longer read": lambda it: it.order["properties"].pop("note"),
    f"{PUT}: body no longer accepts further fields": lambda it: it.order.update(additionalProperties=False),
    f'{PUT}: body.colour may no longer be "green"': lambda it: it.order["properties"]["colour"].update(enum=["red"]),
    f"{PUT}: body.email is held to format email": lambda it: it.order["properties"]["email"].update(format="email"),
    f"{PUT}: the answer 200 is gone": lambda it: it.call["responses"].pop("200"),
    f"{PUT}: the answer 202 is new, and no caller knows what it means": lambda it: it.call["responses"].update(
        {"202": {}}
    ),
    f"{PUT}: the answer 200 is no longer application/json": lambda it: it.call["responses"]["200"].update(
        content={"text/html": {}}
    ),
    f"{PUT}: answer 200: the header ETag is gone": lambda it: it.call["responses"]["200"].pop("headers"),
    f"{PUT}: answer 200.parts is gone": lambda it: it.thing["properties"].pop("parts"),
    f"{PUT}: answer 200.stage may be left out now": lambda it: it.thing["required"].remove("stage"),
    f'{PUT}: answer 200.stage may now be "lost"': lambda it: it.thing["properties"]["stage"]["enum"].append("lost"),
    f"{PUT}: answer 200.id may be integer now": lambda it: it.thing["properties"]["id"].update(type="integer"),
    f"{PUT}: answer 200.id may be null now": lambda it: it.thing["properties"].update(
        id={"anyOf": [{"type": "string", "maxLength": 50}, {"type": "null"}]}
    ),
    f"{PUT}: answer 200.id may now be beyond its maxLength of 50": lambda it: it.thing["properties"]["id"].update(
        maxLength=60
    ),
    f"{PUT}: answer 200.totals.* may be string now": lambda it: it.thing["properties"]["totals"].update(
        additionalProperties={"type": "string"}
    ),
}

ADDITIONS: dict[str, Change] = {
    f"{PUT}: query parameter more": lambda it: it.call["parameters"].append(
        {"in": "query", "name": "more", "schema": {"type": "string"}}
    ),
    f"{PUT}: body.name": lambda it: it.order["properties"].update(name={"type": "string"}),
    f"{PUT}: answer 200.name": lambda it: it.thing["properties"].update(name={"type": "string"}),
    f"{PUT}: answer 429": lambda it: it.call["responses"].update({"429": {}}),
}

NOTHING: dict[str, Change] = {
    "a wider limit of what is given": lambda it: it.call["parameters"][1]["schema"].update(maximum=500),
    "a narrower limit of what is told": lambda it: it.thing["properties"]["id"].update(maxLength=20),
    "one more value that may be given": lambda it: it.order["properties"]["colour"]["enum"].append("blue"),
    "one value less that is told": lambda it: it.thing["properties"]["stage"]["enum"].pop(),
    "one more way to be let in": lambda it: it.call["security"].append({"other": []}),
    "an error less": lambda it: it.call["responses"].pop("404"),
    "words": lambda it: it.thing["properties"]["id"].update(description="Its name.", title="Id"),
    "what need not be given any more": lambda it: it.order["required"].clear(),
    "a number for an integer": lambda it: it.call["parameters"][1]["schema"].update(type="number"),
}


def changed(change: Change) -> dict[str, Any]:
    document = copy.deepcopy(RELEASED)
    schemas = document["components"]["schemas"]
    change(Parts(document["paths"]["/things/{id}"]["put"], schemas["Order"], schemas["Thing"]))
    return document


@pytest.mark.parametrize("words", BREAKS)
def test_each_kind_of_break_is_named_alone(words: str) -> None:
    assert compare(RELEASED, changed(BREAKS[words])).breaks == [words]


@pytest.mark.parametrize("words", ADDITIONS)
def test_what_is_new_is_listed_and_breaks_nothing(words: str) -> None:
    compared = compare(RELEASED, changed(ADDITIONS[words]))
    assert (compared.breaks, compared.additions) == ([], [words])


@pytest.mark.parametrize("what", NOTHING)
def test_what_harms_nobody_is_not_named(what: str) -> None:
    compared = compare(RELEASED, changed(NOTHING[what]))
    assert (compared.breaks, compared.additions) == ([], [])


def test_a_field_deep_inside_is_found_and_a_schema_that_holds_itself_comes_to_an_end() -> None:
    document = copy.deepcopy(RELEASED)
    part = document["components"]["schemas"]["Part"]
    part["properties"]["label"] = part["properties"].pop("name")
    part["required"] = ["label"]
    assert f"{PUT}: answer 200.parts[].inside.name is gone" in compare(RELEASED, document).breaks


def test_calls_that_are_gone_are_named_and_new_ones_listed() -> None:
    document = copy.deepcopy(RELEASED)
    del document["paths"]["/things/{id}"]["get"]
    document["paths"]["/others"] = {"get": {"responses": {}}}
    compared = compare(RELEASED, document)
    assert (compared.breaks, compared.additions) == (["GET /things/{id} is gone"], ["GET /others"])
    document["paths"].pop("/things/{id}")
    assert compare(RELEASED, document).breaks == ["/things/{id} is gone"]


def test_every_field_of_our_answers_is_held() -> None:
    released = document_of_this_code()
    assert compare(released, released) == compare({"paths": {}}, {"paths": {}})
    told = str({path: {m: call["responses"] for m, call in calls.items()} for path, calls in released["paths"].items()})
    missed = []
    for name, schema in released["components"]["schemas"].items():
        for each in schema.get("properties", {}) if f"'#/components/schemas/{name}'" in told else ():
            document = copy.deepcopy(released)
            del document["components"]["schemas"][name]["properties"][each]
            if not compare(released, document).breaks:
                missed.append(f"{name}.{each}")
    assert missed == []
