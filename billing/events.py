"""The reduction of a Stripe event to facts: pure, and the only place that knows the shapes of Stripe's objects.

A period and a price stand on the subscription's item, an invoice's subscription under its `parent`, a line's price
under its `pricing`; a refund and a dispute name a payment, and an invoice payment says which invoice that one paid.

Which API versions are read. Stripe breaks shapes only with a named release, twice a year; the dated versions of one
name differ by additions. So *the newest version* is any of the name that the `stripe` package pins (endive), and *one
version back* any of the name before it (dahlia); both are tested event by event. Nothing that is read here changed its
place between them, nor since 2025-03-31 (basil), which moved nearly all of it; the event `invoice_payment.paid`,
without which a refund does not find its invoice, came with 2025-05-28. That is the floor:

- an event that was rendered for an older version is refused in words that say what to do, for its object would be
  misread: no subscription on the invoice, no money in `amount_paid` for what was paid outside of Stripe;
- one of a version that is newer than known, or of none, is taken if its shape fits, and refused as malformed if not.

`amount_paid` includes what was paid outside of Stripe since basil, so an invoice that somebody settled by bank transfer
is paid for (rule 14). `amount_paid_off_stripe` is never part of an event.
"""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from billing.facts import (
    CustomerLinked,
    DisputeSeen,
    EventFacts,
    Fact,
    InvoicePaymentSeen,
    PaidLine,
    PeriodPaid,
    PeriodSeen,
    PriceSeen,
    RefundSeen,
    SubscriptionEnded,
)
from program.identity import ACCOUNT_ID_PATTERN


class MalformedEventError(Exception):
    """An event that is not of the shape that Stripe documents; the message says where, and repeats no value."""


class UnsupportedVersionError(MalformedEventError):
    """An event that Stripe rendered for an API version that is not read here any more; the message says what to do."""


NEWEST_VERSION = "2026-10-28.endive"
"""The API version that these shapes were last compared with: the one that the `stripe` package pins."""

OLDEST_VERSION = "2025-05-28.basil"
"""The first API version with everything that is read here."""

_UPGRADE = f"upgrade the webhook endpoint's API version in Stripe to {NEWEST_VERSION}"


def _id(value: Any) -> Any:
    """The id of an object that may stand expanded."""
    return value.get("id", value) if isinstance(value, dict) else value


def _storable(value: str) -> str:
    """A text that PostgreSQL can store: it has no NUL character."""
    if "\0" in value:
        raise ValueError("text has a NUL character")
    return value


# The bounds are those of what is stored: no event that is accepted here is refused by the database for ever after.
Text = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_storable)]
Id = Annotated[Text, BeforeValidator(_id)]
OptionalId = Annotated[Text | None, BeforeValidator(_id)]
Cents = Annotated[int, Field(gt=-(2**63), lt=2**63)]
Seconds = Annotated[int, Field(strict=True, ge=0, lt=32_503_680_000)]


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


class _Price(BaseModel):
    id: Text
    lookup_key: Text | None = None
    product: OptionalId = None


class _Item(BaseModel):
    price: _Price
    current_period_start: Seconds
    current_period_end: Seconds


class _Items(BaseModel):
    data: list[_Item]


class _Subscription(BaseModel):
    id: Text
    customer: Id
    status: str
    ended_at: Seconds | None = None
    items: _Items


class _Period(BaseModel):
    start: Seconds
    end: Seconds


class _PriceDetails(BaseModel):
    price: OptionalId = None
    product: OptionalId = None


class _Pricing(BaseModel):
    price_details: _PriceDetails | None = None


class _ItemDetails(BaseModel):
    proration: bool = False


class _LineParent(BaseModel):
    subscription_item_details: _ItemDetails | None = None
    invoice_item_details: _ItemDetails | None = None


def _moved(value: Any, old: str, new: str) -> Any:
    """Refuse an object that still has something where it stood before basil, whatever version its event claims."""
    if isinstance(value, dict) and value.get(old) is not None and new not in value:
        raise ValueError(f"{old} stands where it did before 2025-03-31.basil: {_UPGRADE}")
    return value


class _Line(BaseModel):
    amount: Cents
    period: _Period
    pricing: _Pricing | None = None
    parent: _LineParent | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_today(cls, value: Any) -> Any:
        return _moved(value, "price", "pricing")

    @property
    def proration(self) -> bool:
        parent = self.parent or _LineParent()
        return any(
            details.proration for details in (parent.subscription_item_details, parent.invoice_item_details) if details
        )


class _Lines(BaseModel):
    data: list[_Line]


class _SubscriptionDetails(BaseModel):
    subscription: OptionalId = None


class _InvoiceParent(BaseModel):
    subscription_details: _SubscriptionDetails | None = None


class _StatusTransitions(BaseModel):
    paid_at: Seconds | None = None


class _Invoice(BaseModel):
    id: Text
    customer: OptionalId = None
    amount_paid: Annotated[Cents, Field(ge=0)]
    total: Cents | None = None
    parent: _InvoiceParent | None = None
    status_transitions: _StatusTransitions = _StatusTransitions()
    lines: _Lines

    @model_validator(mode="before")
    @classmethod
    def _of_today(cls, value: Any) -> Any:
        return _moved(value, "subscription", "parent")


class _Payment(BaseModel):
    payment_intent: OptionalId = None
    charge: OptionalId = None


class _InvoicePayment(BaseModel):
    id: Text
    invoice: Id
    amount_paid: Cents | None = None
    payment: _Payment = _Payment()
    status_transitions: _StatusTransitions = _StatusTransitions()


class _CheckoutSession(BaseModel):
    mode: str | None = None
    customer: OptionalId = None
    client_reference_id: Text | None = None


class _Charge(BaseModel):
    id: Text
    customer: OptionalId = None
    payment_intent: OptionalId = None
    amount_refunded: Annotated[Cents, Field(ge=0)]


class _Dispute(BaseModel):
    id: Text
    charge: Id
    payment_intent: OptionalId = None
    status: Text


class _EventData(BaseModel):
    object: dict[str, Any]


class _Event(BaseModel):
    id: Text
    type: Text
    api_version: Text | None = None
    created: Seconds
    data: _EventData


_NOT_BEGUN = frozenset({"incomplete", "incomplete_expired"})
_OVER = frozenset({"canceled", "incomplete_expired"})


def _of_subscription(event: _Event) -> Iterator[Fact]:
    subscription = _Subscription.model_validate(event.data.object)
    for item in subscription.items.data:
        yield PriceSeen(item.price.id, item.price.lookup_key, item.price.product, _time(event.created))
        # A subscription whose first invoice is unpaid has not begun; it says so again once it has.
        if subscription.status not in _NOT_BEGUN and item.current_period_end > item.current_period_start:
            yield PeriodSeen(
                subscription.id,
                subscription.customer,
                item.price.id,
                _time(item.current_period_start),
                _time(item.current_period_end),
            )
    if subscription.status in _OVER:
        ended_at = event.created if subscription.ended_at is None else subscription.ended_at
        yield SubscriptionEnded(subscription.id, subscription.customer, _time(ended_at))


def _of_invoice(event: _Event) -> Iterator[Fact]:
    invoice = _Invoice.model_validate(event.data.object)
    details = invoice.parent.subscription_details if invoice.parent else None
    if details is None or details.subscription is None or invoice.customer is None:
        return
    paid_at = invoice.status_transitions.paid_at
    yield PeriodPaid(
        invoice.id,
        invoice.customer,
        details.subscription,
        _time(event.created if paid_at is None else paid_at),
        invoice.amount_paid,
        invoice.amount_paid if invoice.total is None else invoice.total,
        tuple(
            PaidLine(
                line.pricing.price_details.price,
                line.pricing.price_details.product,
                _time(line.period.start),
                _time(line.period.end),
                line.proration,
                line.amount,
            )
            for line in invoice.lines.data
            if line.pricing and line.pricing.price_details and line.pricing.price_details.price
        ),
    )


def _of_invoice_payment(event: _Event) -> Iterator[Fact]:
    payment = _InvoicePayment.model_validate(event.data.object)
    paid_at = payment.status_transitions.paid_at
    yield InvoicePaymentSeen(
        payment.id,
        payment.invoice,
        payment.payment.payment_intent,
        payment.amount_paid or 0,
        None if paid_at is None else _time(paid_at),
        payment.payment.charge,
    )


def _of_checkout(event: _Event) -> Iterator[Fact]:
    session = _CheckoutSession.model_validate(event.data.object)
    # A single purchase has references of its own, and what is no account's id names no account.
    account_id = session.client_reference_id or ""
    if session.customer and session.mode != "payment" and re.fullmatch(ACCOUNT_ID_PATTERN, account_id):
        yield CustomerLinked(session.customer, account_id)


def _of_charge(event: _Event) -> Iterator[Fact]:
    charge = _Charge.model_validate(event.data.object)
    if charge.amount_refunded:
        yield RefundSeen(charge.id, charge.customer, charge.payment_intent, charge.amount_refunded)


def _of_dispute(event: _Event) -> Iterator[Fact]:
    dispute = _Dispute.model_validate(event.data.object)
    yield DisputeSeen(dispute.id, dispute.charge, dispute.payment_intent, dispute.status, _time(event.created))


def _of_price(event: _Event) -> Iterator[Fact]:
    price = _Price.model_validate(event.data.object)
    yield PriceSeen(price.id, price.lookup_key, price.product, _time(event.created))


_REDUCTIONS: dict[str, Callable[[_Event], Iterator[Fact]]] = {
    "customer.subscription.created": _of_subscription,
    "customer.subscription.updated": _of_subscription,
    "customer.subscription.deleted": _of_subscription,
    "customer.subscription.paused": _of_subscription,
    "customer.subscription.resumed": _of_subscription,
    "customer.subscription.trial_will_end": _of_subscription,
    "customer.subscription.pending_update_applied": _of_subscription,
    "customer.subscription.pending_update_expired": _of_subscription,
    "invoice.paid": _of_invoice,
    "invoice_payment.paid": _of_invoice_payment,
    "checkout.session.completed": _of_checkout,
    "charge.refunded": _of_charge,
    "charge.dispute.created": _of_dispute,
    "charge.dispute.updated": _of_dispute,
    "charge.dispute.funds_withdrawn": _of_dispute,
    "charge.dispute.funds_reinstated": _of_dispute,
    "charge.dispute.closed": _of_dispute,
    "price.created": _of_price,
    "price.updated": _of_price,
}

HANDLED_TYPES = frozenset(_REDUCTIONS)
"""The types of events that say something here: those to subscribe to in Stripe."""


_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def _check_version(version: str | None) -> None:
    """Refuse an event of a version that is too old; of one that has no date nothing is known, and its shape decides.

    Raises:
        UnsupportedVersionError: it is older than the oldest that is read.
    """
    dated = _DATE.match(version or "")
    if dated and dated[0] < OLDEST_VERSION[: len(dated[0])]:
        raise UnsupportedVersionError(
            f"api_version: {dated[0]} is older than {OLDEST_VERSION}, the oldest that is read: {_UPGRADE}"
        )


def reduce_event(document: object) -> EventFacts:
    """What an event says. One of a type that is not handled says nothing.

    Args:
        document: the event, as parsed from its JSON.

    Raises:
        MalformedEventError: it is no event, or its object lacks what Stripe documents.
        UnsupportedVersionError: it was rendered for an API version that is too old.
    """
    try:
        event = _Event.model_validate(document)
        reduction = _REDUCTIONS.get(event.type)
        if reduction:
            _check_version(event.api_version)
        facts = tuple(reduction(event)) if reduction else ()
        return EventFacts(event.id, event.type, _time(event.created), facts)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'event'}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        )
        raise MalformedEventError(problems) from None
