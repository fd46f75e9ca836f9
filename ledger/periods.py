"""What Stripe's facts say of an account: its billing periods, its payments, its prices."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, func, or_, select

from billing.facts import CLEARED_DISPUTE
from ledger.database import Transaction
from ledger.tables import customer, dispute, invoice_payment, paid_period, price, refund, seen_period, subscription
from program.cycles import Period
from program.doubts import Doubt
from program.payments import Line, Payment, pays_for_a_period, plan_paid_for
from program.plans import Plans, Price


@dataclass(frozen=True, slots=True)
class KnownPeriods:
    """The billing periods of all of an account's subscriptions to plans.

    Args:
        periods: paid or merely seen.
        ended: when each subscription that is over ended, UTC.
        plans: which plan was paid for, by subscription and start.
    """

    periods: tuple[Period, ...]
    ended: dict[str, datetime]
    plans: dict[tuple[str, datetime], str]

    def plan_in(self, period: Period) -> str | None:
        """The plan that was paid for in a period."""
        return self.plans.get((period.subscription, period.start))


@dataclass(frozen=True, slots=True)
class Reversals:
    """What became of the payment of an invoice.

    Args:
        refunded: how much of it was given back, in the currency's smallest unit.
        disputed: whether the payer disputes it.
    """

    refunded: int = 0
    disputed: bool = False

    def doubts(self, amount_paid: int) -> tuple[Doubt, ...]:
        """Why the payment of this amount is in doubt; empty where it is not."""
        refund = Doubt.REFUNDED if self.refunded >= amount_paid else Doubt.REFUNDED_IN_PART
        found = ((refund, self.refunded > 0), (Doubt.DISPUTED, self.disputed))
        return tuple(doubt for doubt, applies in found if applies)


async def _prices(transaction: Transaction, ids: set[str]) -> dict[str, Price]:
    if not ids:
        return {}
    rows = await transaction.execute(select(price).where(price.c.price_id.in_(ids)))
    return {row.price_id: Price(row.price_id, row.lookup_key, row.product_id) for row in rows}


async def _prices_by_plan(transaction: Transaction, ids: set[str], plans: Plans) -> dict[str, Price]:
    """The same; of one that sells no known plan nobody is told a plan until this transaction is over.

    What is decided by such a price is seen by whoever walks through its customers once it has a plan, or it is decided
    by that plan (`late_prices`).
    """
    prices = await _prices(transaction, ids)
    unknown = {each for each in ids if plans.sold_by(prices.get(each, Price(each))) is None}
    for price_id in sorted(unknown):
        await transaction.execute(select(func.pg_advisory_xact_lock_shared(price_lock(price_id))))
    return prices | await _prices(transaction, unknown)


def price_lock(price_id: str) -> ColumnElement[int]:
    """The name of the lock on what is decided by a price that sells no known plan."""
    return func.hashtextextended(f"price {price_id}", 0)


def _known(prices: dict[str, Price], line: dict[str, Any]) -> Price:
    """What is known of a line's price: what was seen of it, completed by the product that the line itself names."""
    seen = prices.get(line["price"], Price(line["price"]))
    return Price(seen.id, seen.lookup_key, seen.product or line.get("product"))


def _lines(row: Row[Any], prices: dict[str, Price]) -> tuple[Line, ...]:
    return tuple(Line(_known(prices, line), line["proration"], line["amount"]) for line in row.lines)


async def _invoices(transaction: Transaction, *account_ids: str) -> Sequence[Row[Any]]:
    rows = await transaction.execute(
        select(paid_period, customer.c.account_id)
        .join(customer, customer.c.customer_id == paid_period.c.customer_id)
        .where(customer.c.account_id.in_(account_ids))
    )
    return rows.all()


def _price_ids(invoices: Sequence[Row[Any]]) -> set[str]:
    return {line["price"] for row in invoices for line in row.lines}


async def payments_of(transaction: Transaction, account_id: str) -> list[Payment]:
    """All paid subscription invoices of an account's customers."""
    return (await payments_of_each(transaction, [account_id]))[account_id]


async def payments_of_each(transaction: Transaction, account_ids: Sequence[str]) -> Mapping[str, list[Payment]]:
    """The same, of each of some accounts; nothing of one that paid nothing."""
    invoices = await _invoices(transaction, *account_ids)
    prices = await _prices(transaction, _price_ids(invoices))
    reversals = await reversals_of(transaction, [row.invoice_id for row in invoices])
    payments: dict[str, list[Payment]] = defaultdict(list)
    for row in invoices:
        known = reversals.get(row.invoice_id, Reversals())
        lines = _lines(row, prices)
        payments[row.account_id].append(
            Payment(row.invoice_id, row.paid_at, row.amount_paid, lines, known.refunded, known.disputed)
        )
    return payments


async def reversals_of(transaction: Transaction, invoice_ids: Iterable[str]) -> dict[str, Reversals]:
    """What was given back or is disputed of these invoices' payments; those of which nothing is are left out."""
    ids = sorted(set(invoice_ids))
    if not ids:
        return {}
    shared = invoice_payment.alias("shared")
    of_the_same = shared.c.payment_intent_id == invoice_payment.c.payment_intent_id
    refunds = await transaction.execute(
        select(
            invoice_payment.c.invoice_id,
            refund.c.charge_id,
            refund.c.amount_refunded,
            invoice_payment.c.amount_paid,
            select(func.sum(shared.c.amount_paid)).where(of_the_same).scalar_subquery().label("paid_together"),
            select(func.count(shared.c.invoice_id.distinct())).where(of_the_same).scalar_subquery().label("invoices"),
        )
        .join(
            refund,
            or_(
                refund.c.payment_intent_id == invoice_payment.c.payment_intent_id,
                refund.c.charge_id == invoice_payment.c.charge_id,
            ),
        )
        .where(invoice_payment.c.invoice_id.in_(ids))
    )
    refunded: dict[str, dict[str, int]] = defaultdict(dict)
    for row in refunds:
        refunded[row.invoice_id][row.charge_id] = _share(
            row.amount_refunded, row.amount_paid, row.paid_together, row.invoices
        )
    disputes = await transaction.execute(
        select(invoice_payment.c.invoice_id)
        .join(
            dispute,
            or_(
                dispute.c.payment_intent_id == invoice_payment.c.payment_intent_id,
                dispute.c.charge_id == invoice_payment.c.charge_id,
            ),
        )
        .where(invoice_payment.c.invoice_id.in_(ids), dispute.c.status.not_in(sorted(CLEARED_DISPUTE)))
    )
    disputed = set(disputes.scalars())
    return {
        invoice_id: Reversals(sum(refunded[invoice_id].values()), invoice_id in disputed)
        for invoice_id in refunded.keys() | disputed
    }


def _share(refunded: int, paid: int, paid_together: int, invoices: int) -> int:
    """How much of a refund was one invoice's.

    Of a payment for several invoices nobody knows which one was given back: each was in part, unless all were.

    Args:
        refunded: how much was given back of the payment.
        paid: how much the payment paid of this invoice.
        paid_together: how much it paid of all its invoices.
        invoices: how many those are; a charge that is no payment intent's is not counted, for it has one.
    """
    if invoices <= 1:
        return refunded
    return paid if refunded >= paid_together else max(1, min(refunded, paid - 1))


async def of_account(transaction: Transaction, account_id: str, plans: Plans) -> KnownPeriods:
    """The billing periods of an account's subscriptions to plans. A free invoice (trial, full coupon) pays for none."""
    invoices = await _invoices(transaction, account_id)
    seen = (
        await transaction.execute(
            select(seen_period)
            .join(customer, customer.c.customer_id == seen_period.c.customer_id)
            .where(customer.c.account_id == account_id)
        )
    ).all()
    ended = await transaction.execute(
        select(subscription.c.subscription_id, subscription.c.ended_at)
        .join(customer, customer.c.customer_id == subscription.c.customer_id)
        .where(customer.c.account_id == account_id)
    )
    prices = await _prices_by_plan(transaction, _price_ids(invoices) | {row.price_id for row in seen}, plans)
    periods: list[Period] = []
    paid_plans: dict[tuple[str, datetime], str] = {}
    for row in invoices:
        payment = Payment(row.invoice_id, row.paid_at, row.amount_paid, _lines(row, prices))
        plan = plan_paid_for(payment, plans)
        if plan is None or not pays_for_a_period(row.amount_paid, row.total):
            continue
        for line, told in zip(payment.lines, row.lines, strict=True):
            if not line.gives_back and plans.sold_by(line.price) is not None:
                start, end = datetime.fromisoformat(told["start"]), datetime.fromisoformat(told["end"])
                periods.append(Period(row.subscription_id, start, end, paid=True))
                paid_plans[row.subscription_id, start] = plan.id
    periods += [
        Period(row.subscription_id, row.starts_at, row.ends_at, paid=False)
        for row in seen
        if plans.sold_by(prices.get(row.price_id, Price(row.price_id))) is not None
    ]
    return KnownPeriods(tuple(periods), {row.subscription_id: row.ended_at for row in ended}, paid_plans)
