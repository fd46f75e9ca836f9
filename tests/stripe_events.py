"""Stripe events in the shape of the API version that the `stripe` package pins, and their signatures."""

import itertools
import json
from datetime import UTC, datetime
from typing import Any

import stripe

Event = dict[str, Any]

_numbers = itertools.count(1)


def _seconds(at: datetime) -> int:
    return int(at.timestamp())


def unique(prefix: str) -> str:
    """An id that no other event or object in this run has."""
    return f"{prefix}_{next(_numbers):08d}"


def event(type_: str, obj: dict[str, Any], created: datetime | None = None, event_id: str | None = None) -> Event:
    """An event about an object."""
    return {
        "id": event_id or unique("evt"),
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": _seconds(created or datetime.now(UTC)),
        "type": type_,
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "data": {"object": obj},
    }


def subscription(
    customer: str,
    subscription_id: str,
    start: datetime,
    end: datetime,
    *,
    plan: str = "pro",
    status: str = "active",
    ended_at: datetime | None = None,
    type_: str = "customer.subscription.created",
    lookup_key: str | None = None,
    created: datetime | None = None,
) -> Event:
    """A subscription to one plan, in the period from `start` to `end`."""
    price = {
        "id": f"price_{plan}",
        "object": "price",
        "lookup_key": lookup_key or plan,
        "product": f"prod_{plan}",
        "recurring": {"interval": "month", "interval_count": 1},
    }
    item = {
        "id": f"si_{subscription_id}",
        "object": "subscription_item",
        "current_period_start": _seconds(start),
        "current_period_end": _seconds(end),
        "price": price,
        "quantity": 1,
        "subscription": subscription_id,
    }
    return event(
        type_,
        {
            "id": subscription_id,
            "object": "subscription",
            "customer": customer,
            "status": status,
            "cancel_at_period_end": False,
            "ended_at": _seconds(ended_at) if ended_at else None,
            "items": {"object": "list", "data": [item], "has_more": False},
        },
        created,
    )


def line(plan: str, start: datetime, end: datetime, amount: int, *, proration: bool = False) -> dict[str, Any]:
    """One line of an invoice."""
    return {
        "id": unique("il"),
        "object": "line_item",
        "amount": amount,
        "period": {"start": _seconds(start), "end": _seconds(end)},
        "pricing": {
            "type": "price_details",
            "price_details": {"price": f"price_{plan}", "product": f"prod_{plan}"},
        },
        "parent": {
            "type": "subscription_item_details",
            "subscription_item_details": {"proration": proration, "subscription_item": "si_1"},
            "invoice_item_details": None,
        },
    }


def invoice_paid(
    customer: str,
    subscription_id: str,
    start: datetime,
    end: datetime,
    *,
    plan: str = "pro",
    amount_paid: int = 2900,
    total: int | None = None,
    paid_at: datetime | None = None,
    invoice_id: str | None = None,
    lines: list[dict[str, Any]] | None = None,
    reason: str = "subscription_create",
) -> Event:
    """A paid invoice of a subscription."""
    paid = paid_at or start
    return event(
        "invoice.paid",
        {
            "id": invoice_id or unique("in"),
            "object": "invoice",
            "customer": customer,
            "status": "paid",
            "billing_reason": reason,
            "amount_paid": amount_paid,
            "total": amount_paid if total is None else total,
            "parent": {
                "type": "subscription_details",
                "subscription_details": {"subscription": subscription_id, "metadata": {}},
                "quote_details": None,
            },
            "status_transitions": {"paid_at": _seconds(paid), "finalized_at": _seconds(paid)},
            "lines": {"object": "list", "data": lines or [line(plan, start, end, amount_paid)], "has_more": False},
        },
        paid,
    )


def invoice_payment_paid(invoice_id: str, paid_at: datetime, amount_paid: int = 2900) -> Event:
    """The payment behind a paid invoice."""
    return event(
        "invoice_payment.paid",
        {
            "id": unique("inpay"),
            "object": "invoice_payment",
            "invoice": invoice_id,
            "amount_paid": amount_paid,
            "status": "paid",
            "payment": {"type": "payment_intent", "payment_intent": unique("pi")},
            "status_transitions": {"paid_at": _seconds(paid_at), "canceled_at": None},
        },
        paid_at,
    )


def checkout_completed(customer: str, account_id: str) -> Event:
    """A checkout that names the account that it was for."""
    return event(
        "checkout.session.completed",
        {
            "id": unique("cs"),
            "object": "checkout.session",
            "mode": "subscription",
            "customer": customer,
            "client_reference_id": account_id,
            "subscription": unique("sub"),
        },
    )


def signed(document: Event, secret: str, timestamp: int | None = None) -> tuple[bytes, dict[str, str]]:
    """An event as Stripe posts it: the body, and the headers with its signature."""
    body = json.dumps(document, indent=2)
    header = stripe.WebhookSignature.generate_signature_header(body, secret, timestamp)
    return body.encode(), {"Stripe-Signature": header, "Content-Type": "application/json"}


def rendered_for(api_version: str | None, document: Event) -> Event:
    """An event as Stripe renders it for another API version; between those supported nothing differs that is read."""
    return document | {"api_version": api_version}


def as_before_basil(document: Event, api_version: str | None = "2025-02-24.acacia") -> Event:
    """An event with its object as it was before 2025-03-31, when Stripe moved most of what is read."""
    copied: Event = json.loads(json.dumps(document)) | {"api_version": api_version}
    obj = copied["data"]["object"]
    match obj["object"]:
        case "subscription":
            periods = [
                (item.pop("current_period_start"), item.pop("current_period_end")) for item in obj["items"]["data"]
            ]
            obj["current_period_start"], obj["current_period_end"] = periods[0]
        case "invoice":
            details = obj.pop("parent")["subscription_details"]
            obj |= {"subscription": details["subscription"], "paid": True, "charge": unique("ch")}
            for each in obj["lines"]["data"]:
                price = each.pop("pricing")["price_details"]
                proration = each.pop("parent")["subscription_item_details"]["proration"]
                each |= {"price": {"id": price["price"], "product": price["product"]}, "proration": proration}
        case "charge":
            obj["invoice"] = unique("in")
    return copied


def invoice_unpaid(type_: str, customer: str, subscription_id: str, start: datetime, end: datetime) -> Event:
    """An invoice of a subscription that nobody paid: one of `invoice.payment_failed`, `.voided` and the like."""
    status = {"invoice.voided": "void", "invoice.marked_uncollectible": "uncollectible"}.get(type_, "open")
    document = invoice_paid(customer, subscription_id, start, end, amount_paid=0, total=2900)
    unpaid = {"status": status, "amount_remaining": 2900, "status_transitions": {"paid_at": None}}
    return event(type_, document["data"]["object"] | unpaid, start)


def paid_by(invoice_id: str, intent: str | None, paid_at: datetime, *, amount: int = 2900, **payment: Any) -> Event:
    """The payment behind an invoice, by its payment intent, or by what else is said (`charge`, `payment_record`)."""
    document = invoice_payment_paid(invoice_id, paid_at, amount)
    kind = next(iter(payment), "payment_intent")
    document["data"]["object"]["payment"] = {"type": kind} | (payment or {"payment_intent": intent})
    return document


def charge_refunded(
    intent: str | None,
    amount_refunded: int,
    *,
    customer: str | None = None,
    amount: int = 2900,
    charge_id: str | None = None,
    created: datetime | None = None,
) -> Event:
    """A charge of which so much was given back by now."""
    return event(
        "charge.refunded",
        {
            "id": charge_id or unique("ch"),
            "object": "charge",
            "amount": amount,
            "amount_captured": amount,
            "amount_refunded": amount_refunded,
            "refunded": amount_refunded >= amount,
            "disputed": False,
            "customer": customer,
            "payment_intent": intent,
            "currency": "usd",
            "status": "succeeded",
        },
        created,
    )


def dispute(
    intent: str | None,
    status: str,
    *,
    dispute_id: str | None = None,
    charge_id: str = "ch_disputed",
    type_: str = "created",
    amount: int = 2900,
    created: datetime | None = None,
) -> Event:
    """A dispute of a charge, as it stands by then."""
    return event(
        f"charge.dispute.{type_}",
        {
            "id": dispute_id or unique("du"),
            "object": "dispute",
            "amount": amount,
            "balance_transactions": [],
            "charge": charge_id,
            "payment_intent": intent,
            "currency": "usd",
            "evidence_details": {"due_by": None, "has_evidence": False, "past_due": False, "submission_count": 0},
            "reason": "fraudulent",
            "status": status,
        },
        created,
    )


def price(
    price_id: str, lookup_key: str | None, *, product: str = "prod_pro", type_: str = "updated", created: datetime
) -> Event:
    """A price, made or changed."""
    return event(
        f"price.{type_}",
        {
            "id": price_id,
            "object": "price",
            "active": True,
            "lookup_key": lookup_key,
            "product": product,
            "recurring": {"interval": "month", "interval_count": 1},
            "unit_amount": 2900,
        },
        created,
    )
