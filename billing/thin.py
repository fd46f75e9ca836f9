"""Reads events that do not hold all that they tell: the rest is fetched from Stripe, and takes the same road.

- A thin event (Stripe says *event notification*) names an object instead of holding it: `v1.invoice.paid` and so on.
  The object is fetched as it is now, which is never less than it was, and reduced as the snapshot event would be. Both
  forms of one event have one id here, that of the snapshot, so whichever comes second changes nothing.
- An event that was rendered for an API version that is too old: its object is fetched in the pinned version.
- An object that shows only the first of its lines or items: the others are fetched.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import structlog
from pydantic import AwareDatetime, BaseModel, ValidationError

from billing.api import Object, StripeApi, StripeRefusedError
from billing.events import (
    HANDLED_TYPES,
    NEWEST_VERSION,
    MalformedEventError,
    Text,
    UnsupportedVersionError,
    reduce_event,
)
from billing.facts import EventFacts

NOTIFICATION = "v2.core.event"
"""What a thin event says that it is."""

_OF_V1 = "v1."

_PATHS = {
    "charge": "/v1/charges",
    "checkout.session": "/v1/checkout/sessions",
    "dispute": "/v1/disputes",
    "invoice": "/v1/invoices",
    "invoice_payment": "/v1/invoice_payments",
    "price": "/v1/prices",
    "subscription": "/v1/subscriptions",
}

_KINDS = {
    "charge.dispute.": "dispute",
    "charge.": "charge",
    "checkout.session.": "checkout.session",
    "customer.subscription.": "subscription",
    "invoice.": "invoice",
    "invoice_payment.": "invoice_payment",
    "price.": "price",
}
"""What events are about, by how their types begin; the first that fits."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ApiKeyMissingError(Exception):
    """An event tells less than is needed, and there is no key to ask Stripe for the rest."""


class _Related(BaseModel):
    id: Text
    type: Text


class _Notification(BaseModel):
    id: Text
    type: Text
    created: AwareDatetime
    related_object: _Related | None = None

    @property
    def snapshot_type(self) -> str:
        return self.type.removeprefix(_OF_V1)

    @property
    def ours(self) -> bool:
        return self.type.startswith(_OF_V1) and self.snapshot_type in HANDLED_TYPES


async def read_event(document: object, api: StripeApi | None) -> EventFacts:
    """What an event says, thin or not. One of a type that is not handled says nothing, and nothing is fetched for it.

    Args:
        document: the event, as parsed from its JSON.
        api: where the rest is fetched; without it only what the event holds is known.

    Raises:
        MalformedEventError: it is no event, or an object lacks what Stripe documents.
        UnsupportedVersionError: it was rendered for an API version that is too old, and there is no `api`.
        ApiKeyMissingError: it is a thin event, and there is no `api`.
        StripeUnreachableError: Stripe could not be asked for the rest.
        StripeRefusedError: Stripe does not say.
    """
    if isinstance(document, dict) and document.get("object") == NOTIFICATION:
        return await _read_notification(document, api)
    try:
        event = reduce_event(document)
    except UnsupportedVersionError:
        if api is None or not isinstance(document, dict):
            raise
        return await _read_anew(document, api)
    if not event.facts or not isinstance(document, dict):
        return event
    obj = document["data"]["object"]
    whole = await completed(obj, api)
    return event if whole is obj else reduce_event(_about(document, whole))


def event_about(event_id: str, type_: str, created: int, obj: Object) -> Object:
    """An object that was fetched, as the event that would have told of it.

    Args:
        event_id: what tells it from others.
        type_: of which type it would have been.
        created: when, in seconds since the epoch.
        obj: the object, in the pinned version.
    """
    return {"id": event_id, "type": type_, "created": created, "api_version": NEWEST_VERSION, "data": {"object": obj}}


async def completed(obj: Object, api: StripeApi | None) -> Object:
    """An object with all its lines or items; as it is where it shows them all, or where there is no `api`.

    Raises:
        StripeUnreachableError: Stripe could not be asked.
        StripeRefusedError: Stripe does not say.
    """
    name, path, params = _list_of(obj)
    shown = obj.get(name)
    if not isinstance(shown, dict) or not shown.get("has_more"):
        return obj
    if api is None:
        log.warning("only the first lines are known, for there is no key for Stripe's API", object=obj.get("object"))
        return obj
    everything = [one async for one in api.list_all(path, params)]
    return {**obj, name: {**shown, "data": everything, "has_more": False}}


def _list_of(obj: Object) -> tuple[str, str, Mapping[str, Any]]:
    """Where an object has a list, and where all of it is read."""
    if obj.get("object") == "invoice":
        return "lines", f"/v1/invoices/{_quoted(obj)}/lines", {}
    return "items", "/v1/subscription_items", {"subscription": obj.get("id")}


async def _read_anew(document: Object, api: StripeApi) -> EventFacts:
    """What an event says of its object as that is now, in the pinned version; nothing where it is gone."""
    obj = document["data"]["object"]
    fetched = await _fetched(obj.get("object"), obj.get("id"), api)
    return reduce_event({**document, "type": "gone"} if fetched is None else _about(document, fetched))


async def fetched(type_: str, object_id: str, api: StripeApi) -> Object | None:
    """The object of that id that an event of some type is about, as it is now; none where Stripe knows it no longer.

    Raises:
        MalformedEventError: no event of that type is handled.
        StripeUnreachableError: Stripe could not be asked.
        StripeRefusedError: Stripe does not say.
    """
    kinds = [kind for beginning, kind in _KINDS.items() if type_.startswith(beginning)]
    return await _fetched(kinds[0] if kinds else None, object_id, api)


async def _fetched(kind: object, object_id: object, api: StripeApi) -> Object | None:
    """An object as it is now, whole; none where Stripe knows it no longer."""
    if kind not in _PATHS or not isinstance(object_id, str):
        raise MalformedEventError("the object is of no kind that such an event is about")
    try:
        return await completed(await api.get(f"{_PATHS[str(kind)]}/{quote(object_id, safe='')}"), api)
    except StripeRefusedError as error:
        if error.missing:
            return None
        raise


def _about(document: Object, obj: Object) -> Object:
    return {**document, "api_version": NEWEST_VERSION, "data": {"object": obj}}


async def _read_notification(document: Object, api: StripeApi | None) -> EventFacts:
    try:
        notification = _Notification.model_validate(document)
    except ValidationError as error:
        places = "; ".join(".".join(str(part) for part in problem["loc"]) for problem in error.errors())
        raise MalformedEventError(f"not as Stripe documents it: {places}") from None
    nothing = EventFacts(notification.id, notification.snapshot_type, notification.created, ())
    if not notification.ours:
        return nothing
    related = notification.related_object
    if related is None:
        raise MalformedEventError("related_object: it names no object")
    if api is None:
        raise ApiKeyMissingError("a thin event only names an object: without REFERRALS_STRIPE_API_KEY it says nothing")
    obj = await _fetched(related.type, related.id, api)
    if obj is None:
        return nothing
    event_id = await _snapshot_id(notification, api)
    return reduce_event(event_about(event_id, notification.snapshot_type, int(notification.created.timestamp()), obj))


async def _snapshot_id(notification: _Notification, api: StripeApi) -> str:
    """The id of the same event's other form; its own where Stripe names none."""
    try:
        event = await api.get(f"/v2/core/events/{quote(notification.id, safe='')}")
    except StripeRefusedError:
        return notification.id
    return str(event.get("snapshot_event") or notification.id)


def _quoted(obj: Object) -> str:
    return quote(str(obj.get("id")), safe="")
