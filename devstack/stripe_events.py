"""Stripe's events as Stripe sends them, for one customer with one subscription: the newest shape, correctly signed."""

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import stripe

PRICES_IN_CENTS = {"starter": 900, "pro": 2900, "power": 7900}
"""What a month of each plan costs."""


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _list(url: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": False, "total_count": len(data), "url": url}


def event(kind: str, document: dict[str, Any]) -> dict[str, Any]:
    """An event of the API version that the `stripe` package pins, with an id of its own."""
    return {
        "id": _id("evt"),
        "object": "event",
        "api_version": stripe.api_version,
        "created": int(time.time()),
        "data": {"object": document},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": kind,
    }


def told(document: dict[str, Any], event_id: str, at: int) -> dict[str, Any]:
    """An event under an id that is given, as Stripe told it at another time, in Unix seconds."""
    return {**document, "id": event_id, "created": at}


def signed(document: dict[str, Any], secret: str) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of the request by which Stripe delivers an event."""
    body = json.dumps(document)
    signature = stripe.WebhookSignature.generate_signature_header(body, secret)
    return body.encode(), {"Stripe-Signature": signature, "Content-Type": "application/json; charset=utf-8"}


@dataclass(frozen=True)
class Subscription:
    """One customer's subscription to a plan, by the month.

    Args:
        customer: the Stripe customer's id.
        plan: the plan, by its lookup key.
    """

    customer: str
    plan: str
    id: str = field(default_factory=lambda: _id("sub"))
    item: str = field(default_factory=lambda: _id("si"))

    @property
    def _price(self) -> dict[str, Any]:
        return {
            "id": f"price_{self.plan}",
            "object": "price",
            "active": True,
            "billing_scheme": "per_unit",
            "currency": "usd",
            "livemode": False,
            "lookup_key": self.plan,
            "metadata": {},
            "product": f"prod_{self.plan}",
            "recurring": {"interval": "month", "interval_count": 1, "meter": None, "usage_type": "licensed"},
            "type": "recurring",
            "unit_amount": PRICES_IN_CENTS[self.plan],
            "unit_amount_decimal": str(PRICES_IN_CENTS[self.plan]),
        }

    def created(self, start: int, end: int) -> dict[str, Any]:
        """`customer.subscription.created`, active in a first period; the times are Unix seconds."""
        item = {
            "id": self.item,
            "object": "subscription_item",
            "created": start,
            "current_period_start": start,
            "current_period_end": end,
            "discounts": [],
            "metadata": {},
            "price": self._price,
            "quantity": 1,
            "subscription": self.id,
            "tax_rates": [],
        }
        return event(
            "customer.subscription.created",
            {
                "id": self.id,
                "object": "subscription",
                "automatic_tax": {"enabled": False},
                "billing_cycle_anchor": start,
                "billing_mode": {"type": "flexible"},
                "cancel_at": None,
                "cancel_at_period_end": False,
                "canceled_at": None,
                "collection_method": "charge_automatically",
                "created": start,
                "currency": "usd",
                "customer": self.customer,
                "discounts": [],
                "ended_at": None,
                "items": _list(f"/v1/subscription_items?subscription={self.id}", [item]),
                "latest_invoice": None,
                "livemode": False,
                "metadata": {},
                "start_date": start,
                "status": "active",
                "trial_end": None,
                "trial_start": None,
            },
        )

    def ended(self, start: int, end: int, ended_at: int) -> dict[str, Any]:
        """`customer.subscription.deleted`, after a last period; the times are Unix seconds."""
        document = self.created(start, end)["data"]["object"]
        over = {"status": "canceled", "canceled_at": ended_at, "ended_at": ended_at}
        return event("customer.subscription.deleted", document | over)

    def paid(self, start: int, end: int, paid_at: int, *, renewal: bool, invoice: str | None = None) -> dict[str, Any]:
        """`invoice.paid` for a period, at the plan's full price; the times are Unix seconds."""
        invoice, cents = invoice or _id("in"), PRICES_IN_CENTS[self.plan]
        line = {
            "id": _id("il"),
            "object": "line_item",
            "amount": cents,
            "currency": "usd",
            "description": f"1 x {self.plan.title()} (at ${cents / 100:.2f} / month)",
            "discount_amounts": [],
            "discountable": True,
            "discounts": [],
            "invoice": invoice,
            "livemode": False,
            "metadata": {},
            "parent": {
                "type": "subscription_item_details",
                "invoice_item_details": None,
                "subscription_item_details": {
                    "invoice_item": None,
                    "proration": False,
                    "proration_details": {"credited_items": None},
                    "subscription": self.id,
                    "subscription_item": self.item,
                },
            },
            "period": {"start": start, "end": end},
            "pricing": {
                "type": "price_details",
                "price_details": {"price": f"price_{self.plan}", "product": f"prod_{self.plan}"},
                "unit_amount_decimal": str(cents),
            },
            "quantity": 1,
            "taxes": [],
        }
        return event(
            "invoice.paid",
            {
                "id": invoice,
                "object": "invoice",
                "amount_due": cents,
                "amount_paid": cents,
                "amount_remaining": 0,
                "attempt_count": 1,
                "attempted": True,
                "auto_advance": False,
                "billing_reason": "subscription_cycle" if renewal else "subscription_create",
                "collection_method": "charge_automatically",
                "created": paid_at,
                "currency": "usd",
                "customer": self.customer,
                "discounts": [],
                "lines": _list(f"/v1/invoices/{invoice}/lines", [line]),
                "livemode": False,
                "metadata": {},
                "parent": {
                    "type": "subscription_details",
                    "quote_details": None,
                    "subscription_details": {"metadata": {}, "subscription": self.id},
                },
                # An invoice's own period looks back; the one that was paid for is on its lines.
                "period_end": start,
                "period_start": start,
                "status": "paid",
                "status_transitions": {
                    "finalized_at": paid_at,
                    "marked_uncollectible_at": None,
                    "paid_at": paid_at,
                    "voided_at": None,
                },
                "subtotal": cents,
                "total": cents,
                "total_discount_amounts": [],
            },
        )

    def paid_by(self, invoice: str, paid_at: int) -> dict[str, Any]:
        """`invoice_payment.paid`: the payment behind an invoice at the plan's full price; the time is Unix seconds."""
        cents = PRICES_IN_CENTS[self.plan]
        return event(
            "invoice_payment.paid",
            {
                "id": f"inpay_{invoice}",
                "object": "invoice_payment",
                "amount_paid": cents,
                "amount_requested": cents,
                "created": paid_at,
                "currency": "usd",
                "invoice": invoice,
                "is_default": True,
                "livemode": False,
                "payment": {"type": "payment_intent", "payment_intent": f"pi_{invoice}"},
                "status": "paid",
                "status_transitions": {"canceled_at": None, "paid_at": paid_at},
            },
        )

    def refunded(self, invoice: str, cents: int, at: int) -> dict[str, Any]:
        """`charge.refunded`: so many cents of what paid an invoice were given back by then, in Unix seconds."""
        amount = PRICES_IN_CENTS[self.plan]
        return event(
            "charge.refunded",
            {
                "id": f"ch_{invoice}",
                "object": "charge",
                "amount": amount,
                "amount_captured": amount,
                "amount_refunded": cents,
                "created": at,
                "currency": "usd",
                "customer": self.customer,
                "disputed": False,
                "livemode": False,
                "metadata": {},
                "paid": True,
                "payment_intent": f"pi_{invoice}",
                "refunded": cents >= amount,
                "status": "succeeded",
            },
        )

    def disputed(self, invoice: str, at: int) -> dict[str, Any]:
        """`charge.dispute.created`: the payer disputes what paid an invoice; the time is Unix seconds."""
        return event(
            "charge.dispute.created",
            {
                "id": f"du_{invoice}",
                "object": "dispute",
                "amount": PRICES_IN_CENTS[self.plan],
                "balance_transactions": [],
                "charge": f"ch_{invoice}",
                "created": at,
                "currency": "usd",
                "evidence_details": {"due_by": None, "has_evidence": False, "past_due": False, "submission_count": 0},
                "is_charge_refundable": False,
                "livemode": False,
                "metadata": {},
                "payment_intent": f"pi_{invoice}",
                "reason": "fraudulent",
                "status": "needs_response",
            },
        )
