"""A small stand-in for Stripe's API: what is read here, with Stripe's paging, filters and error shapes, on loopback.

It keeps state: what an event is about is there to be fetched, and lists give the newest first. It can be told to fail.
"""

import asyncio
import json
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import uvicorn

from tests.stripe_events import Event

API_KEY = "sk_test_only_the_tests_use_this"
LINES_SHOWN = 10
"""How many lines an invoice itself shows; the others are a list of their own."""

_COLLECTIONS = {
    "event": "events",
    "v2.core.event": "v2/core/events",
    "subscription_item": "subscription_items",
    "invoice": "invoices",
    "invoice_payment": "invoice_payments",
    "subscription": "subscriptions",
    "price": "prices",
    "product": "products",
    "customer": "customers",
    "charge": "charges",
    "refund": "refunds",
    "dispute": "disputes",
    "payment_intent": "payment_intents",
    "payment_method": "payment_methods",
    "setup_intent": "setup_intents",
    "checkout.session": "checkout/sessions",
}
_FILTERS = ("customer", "status", "invoice", "subscription", "payment_intent", "charge", "type")
_RANGE: dict[str, Callable[[int, int], bool]] = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}


@dataclass(frozen=True)
class Asked:
    """One request that came in."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


class _RefusalError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.document = {"error": {"type": "invalid_request_error", "message": message, "code": code}}


@dataclass
class StripeServer:
    """What Stripe knows, and how it answers."""

    base: str = ""
    asked: list[Asked] = field(default_factory=list)
    failures: deque[int] = field(default_factory=deque)
    """Statuses that the next requests are answered with, whatever they ask for."""
    before: Callable[[Asked], Awaitable[None]] | None = None
    """What happens before a request is answered."""
    _objects: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def add(self, *objects: dict[str, Any], created: datetime | None = None) -> None:
        """Let Stripe know objects, each in the state that it is in from now on."""
        for one in objects:
            known = self._objects.setdefault(_COLLECTIONS[one["object"]], {})
            before = known.get(one["id"], {})
            at = int((created or datetime.now(UTC)).timestamp())
            known[one["id"]] = {"created": before.get("created", at), **deepcopy(one)}

    def happen(self, *events: Event) -> None:
        """Let Stripe make events, about objects that it knows from then on."""
        for event in events:
            about = event["data"]["object"]
            self.add(event)
            self.add(about, created=datetime.fromtimestamp(event["created"], UTC))

    def forget(self, kind: str, id_: str) -> None:
        """Let an object be gone."""
        del self._objects[_COLLECTIONS[kind]][id_]

    def reads(self, path: str) -> int:
        """How many requests came for paths that begin so."""
        return sum(asked.path.startswith(path) for asked in self.asked)

    async def __call__(
        self, scope: MutableMapping[str, Any], _receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode()))
        asked = Asked(scope["path"], query, headers)
        self.asked.append(asked)
        if self.before:
            await self.before(asked)
        try:
            status, document = 200, self._answer(asked)
        except _RefusalError as refusal:
            status, document = refusal.status, refusal.document
        body = json.dumps(document).encode()
        kind = [(b"content-type", b"application/json"), (b"request-id", b"req_of_the_tests")]
        await send({"type": "http.response.start", "status": status, "headers": kind})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, asked: Asked) -> dict[str, Any]:
        if self.failures:
            status = self.failures.popleft()
            raise _RefusalError(
                status, "somebody@example.com is told that it failed", "rate_limit" if status == 429 else None
            )
        if asked.headers.get("authorization") != f"Bearer {API_KEY}":
            raise _RefusalError(401, "Invalid API Key provided")
        path = asked.path.removeprefix("/v1/").removeprefix("/")
        for collection in _COLLECTIONS.values():
            known = self._objects.get(collection, {})
            if path == collection:
                return self._list(asked, known.values())
            found = re.fullmatch(rf"{collection}/([^/]+)(/lines)?", path)
            if found and found[2]:
                return self._list(asked, known[found[1]]["lines"]["data"], newest_first=False)
            if found:
                if found[1] not in known:
                    raise _RefusalError(404, f"No such object: '{found[1]}'", "resource_missing")
                return self._shown(known[found[1]])
        found = re.fullmatch(r"customers/([^/]+)/payment_methods", path)
        if found:
            if not self._knows_customer(found[1]):
                raise _RefusalError(404, f"No such customer: '{found[1]}'", "resource_missing")
            methods = self._objects.get("payment_methods", {}).values()
            return self._list(asked, [one for one in methods if one.get("customer") == found[1]])
        raise _RefusalError(404, f"Unrecognized request URL ({asked.path})")

    def _list(self, asked: Asked, known: Iterable[dict[str, Any]], *, newest_first: bool = True) -> dict[str, Any]:
        query = asked.query
        limit = int(query.get("limit", 10))
        if not 1 <= limit <= 100:
            raise _RefusalError(400, "This value must be less than or equal to 100", "parameter_invalid_integer")
        types = {value for name, value in query.items() if name.startswith("types[")}
        if len(types) > 20:
            raise _RefusalError(400, "Array types exceeded maximum 20 allowed elements")
        if "customer" in query and not self._knows_customer(query["customer"]):
            raise _RefusalError(400, f"No such customer: '{query['customer']}'", "resource_missing")
        objects = [one for one in known if not types or one["type"] in types]
        for name in _FILTERS:
            if name in query and not (name == "status" and query[name] == "all"):
                objects = [one for one in objects if one.get(name) == query[name]]
        for name, holds in _RANGE.items():
            if (bound := query.get(f"created[{name}]")) is not None:
                objects = [one for one in objects if holds(one["created"], int(bound))]
        if newest_first:
            objects = sorted(objects, key=lambda one: one["created"])[::-1]
        if (after := query.get("starting_after")) is not None:
            ids = [one["id"] for one in objects]
            if after not in ids:
                raise _RefusalError(400, f"No such object: '{after}'", "resource_missing")
            objects = objects[ids.index(after) + 1 :]
        return {
            "object": "list",
            "url": asked.path,
            "has_more": len(objects) > limit,
            "data": [self._shown(one) for one in objects[:limit]],
        }

    def _knows_customer(self, customer: str) -> bool:
        """Whether there is such a customer: one of its own accord, or one that another object is about."""
        everything = (one for known in self._objects.values() for one in known.values())
        return any(customer in (one.get("customer"), one["id"]) for one in everything)

    def _shown(self, one: dict[str, Any]) -> dict[str, Any]:
        """An object as Stripe shows it: of an invoice's lines only the first."""
        if one.get("object") != "invoice":
            return one
        lines = one["lines"]["data"]
        shown = {"object": "list", "data": lines[:LINES_SHOWN], "has_more": len(lines) > LINES_SHOWN}
        return one | {"lines": shown}


@asynccontextmanager
async def stripe_server() -> AsyncIterator[StripeServer]:
    """Run the stand-in on a port of its own."""
    server = StripeServer()
    async with served(server) as base:
        server.base = base
        yield server


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI app on a free port of loopback; gives its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    # Not `serve`: that takes the signals of the whole process for its own.
    task = asyncio.create_task(uvicorn_server._serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        uvicorn_server.should_exit = True
        await task
        listener.close()
