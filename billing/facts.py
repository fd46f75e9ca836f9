"""The facts. Each says something that stays true, so neither their order nor their number matters."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class PaidLine:
    """One line of a paid invoice.

    Args:
        price_id: the Stripe price.
        product_id: its product.
        start: from when the line pays, UTC.
        end: until when, UTC.
        proration: whether it only settles a change within a period.
        amount: in the currency's smallest unit.
    """

    price_id: str
    product_id: str | None
    start: datetime
    end: datetime
    proration: bool
    amount: int


@dataclass(frozen=True, slots=True)
class PeriodPaid:
    """An invoice of a subscription is paid; keyed by the invoice.

    Args:
        invoice_id: the invoice.
        customer_id: whose it is.
        subscription_id: what it is for.
        paid_at: when, UTC.
        amount_paid: what was really paid, in the currency's smallest unit.
        total: what it was worth, the same plus what a balance settled.
        lines: what it was for.
    """

    invoice_id: str
    customer_id: str
    subscription_id: str
    paid_at: datetime
    amount_paid: int
    total: int
    lines: tuple[PaidLine, ...]


@dataclass(frozen=True, slots=True)
class PeriodSeen:
    """A subscription was seen in a billing period; of one subscription, price and start the greatest end wins."""

    subscription_id: str
    customer_id: str
    price_id: str
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class SubscriptionEnded:
    """A subscription is over; the earliest time told wins."""

    subscription_id: str
    customer_id: str
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class PriceSeen:
    """What a price was like at a time; the lookup key seen last wins, and one that was taken away is not forgotten."""

    price_id: str
    lookup_key: str | None
    product_id: str | None
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class CustomerLinked:
    """A customer belongs to an account; the first account told keeps it (rule 18)."""

    customer_id: str
    account_id: str


@dataclass(frozen=True, slots=True)
class InvoicePaymentSeen:
    """By which payment an invoice was paid; keyed by the invoice payment."""

    invoice_payment_id: str
    invoice_id: str
    payment_intent_id: str | None
    amount_paid: int
    paid_at: datetime | None
    charge_id: str | None = None


@dataclass(frozen=True, slots=True)
class RefundSeen:
    """A charge was given back, in part or whole; of one charge the greatest amount wins (rules 14 and 20).

    Args:
        charge_id: the charge.
        customer_id: whose it is, where Stripe says so.
        payment_intent_id: the payment that it belongs to: the way to the invoice.
        amount_refunded: all that was given back of it so far, in the currency's smallest unit.
    """

    charge_id: str
    customer_id: str | None
    payment_intent_id: str | None
    amount_refunded: int


FINAL_DISPUTE = frozenset({"won", "lost", "warning_closed", "prevented"})
"""The statuses in which a dispute is over. After a lost one an appeal may still be won."""

CLEARED_DISPUTE = frozenset({"won", "warning_closed"})
"""The statuses in which the payment stands. In any other, one that nobody knows yet included, it is disputed."""


@dataclass(frozen=True, slots=True)
class DisputeSeen:
    """How a dispute of a charge stood at a time; a final status wins over an open one, else the latest (rule 20).

    Args:
        dispute_id: the dispute.
        charge_id: the charge that it is about.
        payment_intent_id: the payment that the charge belongs to: the way to the invoice.
        status: Stripe's word for how it stands.
        seen_at: when it stood so, UTC.
    """

    dispute_id: str
    charge_id: str
    payment_intent_id: str | None
    status: str
    seen_at: datetime


Fact = (
    PeriodPaid
    | PeriodSeen
    | SubscriptionEnded
    | PriceSeen
    | CustomerLinked
    | InvoicePaymentSeen
    | RefundSeen
    | DisputeSeen
)


@dataclass(frozen=True, slots=True)
class EventFacts:
    """All facts that one event tells.

    Args:
        event_id: Stripe's id of the event.
        type: its type.
        created_at: when Stripe made it, UTC.
        facts: what it says; empty where it says nothing that matters here.
    """

    event_id: str
    type: str
    created_at: datetime
    facts: tuple[Fact, ...]
