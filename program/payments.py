"""Which payment of a referee counts, and for which plan (rule 14)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from program.doubts import Doubt, Finding
from program.plans import Plan, Plans, Price

_WITHIN_A_SECOND = timedelta(seconds=1) - timedelta.resolution


class Attention(StrEnum):
    """What has to be mended before a paid referral can go on by itself; a value of `review_reasons`."""

    UNKNOWN_PRICE = "unknown-price"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a paid subscription invoice.

    Args:
        price: what was sold.
        proration: whether the line only settles a change within a period.
        amount: in the currency's smallest unit; below zero for what is given back.
    """

    price: Price
    proration: bool
    amount: int

    @property
    def gives_back(self) -> bool:
        """Whether it gives money back: its period then reaches to the end of one that is over with it."""
        return self.amount < 0


@dataclass(frozen=True, slots=True)
class Payment:
    """A paid invoice of a subscription.

    Args:
        invoice: Stripe's id of it.
        paid_at: when Stripe says that it was paid, UTC.
        amount_paid: what was really paid, in the currency's smallest unit.
        lines: what it was for.
        refunded: how much of it was given back, in the same unit.
        disputed: whether the payer disputes it.
    """

    invoice: str
    paid_at: datetime
    amount_paid: int
    lines: tuple[Line, ...]
    refunded: int = 0
    disputed: bool = False

    @property
    def real(self) -> bool:
        """Whether money was paid, and not all of it given back (rule 14)."""
        return self.amount_paid > 0 and self.refunded < self.amount_paid

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """Why it is for an operator to decide: refunded in part, or disputed (rules 14 and 19)."""
        found = ((Doubt.REFUNDED_IN_PART, self.refunded > 0), (Doubt.DISPUTED, self.disputed))
        return tuple(doubt for doubt, applies in found if applies)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The same as what is found right before the credit: each of them holds the referral (rules 14 and 19)."""
        return tuple(Finding(doubt, hold=True) for doubt in self.doubts)


def pays_for_a_period(amount_paid: int, total: int) -> bool:
    """Whether a paid invoice makes a paid period: it was worth something, a balance may have settled it (rule 1)."""
    return max(amount_paid, total) > 0


def first_paid_by(payments: Iterable[Payment]) -> datetime | None:
    """The instant by which the first of these payments with any money in it had been made, UTC; none if there is none.

    Stripe tells whole seconds: a payment may have been made so much later, and right after a click it was (rule 10).
    """
    return min((payment.paid_at + _WITHIN_A_SECOND for payment in payments if payment.amount_paid > 0), default=None)


@dataclass(frozen=True, slots=True)
class QualifyingPayment:
    """The payment that brings the bonus, and the plan that it paid for."""

    payment: Payment
    plan: Plan


class UnknownPriceError(Exception):
    """Something was paid for, but no price on the invoices is known to sell a plan; ``prices`` names them."""

    def __init__(self, prices: frozenset[str]) -> None:
        """Name the Stripe price ids that `plans.toml` does not place."""
        super().__init__(f"no plan is known for {', '.join(sorted(prices))}")
        self.prices = prices


def plan_paid_for(payment: Payment, plans: Plans) -> Plan | None:
    """The plan that an invoice paid for: of its lines that are no proration, the one with most minutes (rule 14).

    An invoice of nothing but prorations (a change of plan within a free period) counts by what it charges for.
    """
    lines = [line for line in payment.lines if not line.proration]
    if not lines:
        lines = [line for line in payment.lines if line.amount > 0]
    sold = [plan for line in lines if (plan := plans.sold_by(line.price)) is not None]
    return max(sold, key=lambda plan: plan.minutes, default=None)


def first_qualifying_payment(payments: Iterable[Payment], plans: Plans) -> QualifyingPayment | None:
    """The first real payment for a plan among those known: the earliest `paid_at` wins (rule 14).

    Raises:
        UnknownPriceError: there are real payments, but of none is it known which plan it bought.
    """
    unknown: set[str] = set()
    for payment in sorted(payments, key=lambda payment: (payment.paid_at, payment.invoice)):
        if not payment.real:
            continue
        plan = plan_paid_for(payment, plans)
        if plan is not None:
            return QualifyingPayment(payment, plan)
        # An invoice none of whose lines can be read is named itself: it may be for a plan all the same.
        prices = {line.price.id for line in payment.lines if not plans.place(line.price)}
        unknown |= prices if payment.lines else {payment.invoice}
    if unknown:
        raise UnknownPriceError(frozenset(unknown))
    return None
