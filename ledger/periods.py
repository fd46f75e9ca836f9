"""What Stripe's facts say of an account: its billing periods, its payments, its prices."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select

from billing.facts import CLEARED_DISPUTE
from ledger import database
from ledger.database import Transaction
from ledger.tables import dispute, invoice_payment, price, refund
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


def price_lock(price_id: str) -> ColumnElement[int]:
    """The name of the lock on what is decided by a price that sells no known plan."""
    return func.hashtextextended(f"price {price_id}", 0)


def _known(prices: Mapping[str, Price], line: dict[str, Any]) -> Price:
    """What is known of a line's price: what was seen of it, completed by the product that the line itself names."""
    seen = prices.get(line["price"], Price(line["price"]))
    return Price(seen.id, seen.lookup_key, seen.product or line.get("product"))


def _lines(row: Any, prices: Mapping[str, Price]) -> tuple[Line, ...]:
    return tuple(Line(_known(prices, line), line["proration"], line["amount"]) for line in row.lines)


TOLD = """
WITH theirs AS (SELECT customer_id, account_id FROM customer WHERE account_id = ANY(coalesce(%(accounts)s::text[],
        (SELECT ARRAY[referrer_id, referee_id] FROM referral WHERE referral_id = %(referral)s)))),
    paid AS (SELECT * FROM paid_period JOIN theirs USING (customer_id)),
    seen AS (SELECT * FROM seen_period JOIN theirs USING (customer_id))
SELECT 'paid' AS kind, account_id, invoice_id AS id, subscription_id AS other, paid_at AS at,
    NULL::timestamptz AS ends_at, amount_paid, total, lines FROM paid
UNION ALL
SELECT 'seen', account_id, subscription_id, price_id, starts_at, ends_at, NULL, NULL, NULL FROM seen
UNION ALL
SELECT 'ended', account_id, subscription_id, NULL, ended_at, NULL, NULL, NULL, NULL
    FROM subscription JOIN theirs USING (customer_id)
UNION ALL
SELECT 'price', lookup_key, price_id, product_id, NULL, NULL, NULL, NULL, NULL FROM price WHERE price_id IN (
    SELECT line ->> 'price' FROM paid, jsonb_array_elements(lines) line UNION SELECT price_id FROM seen)
UNION ALL
SELECT 'reversed', account_id, invoice_id, NULL, NULL, NULL, NULL, NULL, NULL FROM paid WHERE EXISTS (
    SELECT FROM invoice_payment link WHERE link.invoice_id = paid.invoice_id AND (
        EXISTS (SELECT FROM refund WHERE refund.payment_intent_id = link.payment_intent_id)
        OR EXISTS (SELECT FROM refund WHERE refund.charge_id = link.charge_id)
        OR EXISTS (SELECT FROM dispute WHERE dispute.payment_intent_id = link.payment_intent_id)
        OR EXISTS (SELECT FROM dispute WHERE dispute.charge_id = link.charge_id)))
"""
"""All that Stripe told of some accounts' subscriptions, or of those of a referral's two sides."""


class Told:
    """What :data:`TOLD` found, read in one question, as of one moment."""

    def __init__(self, rows: Iterable[Any], prices: Mapping[str, Price], reversals: Mapping[str, Reversals]) -> None:
        """Sort what was read by account."""
        self._rows: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for row in rows:
            self._rows[row.kind, row.account_id].append(row)
        self._prices = prices
        self._reversals = reversals

    def payments(self, account_id: str) -> list[Payment]:
        """All paid subscription invoices of an account's customers."""
        return [
            Payment(row.id, row.at, row.amount_paid, _lines(row, self._prices), known.refunded, known.disputed)
            for row in self._rows["paid", account_id]
            for known in (self._reversals.get(row.id, Reversals()),)
        ]

    def periods(self, account_id: str, plans: Plans) -> KnownPeriods:
        """The billing periods of an account's subscriptions to plans.

        A free invoice (trial, full coupon) pays for none.
        """
        periods: list[Period] = []
        paid_plans: dict[tuple[str, datetime], str] = {}
        for row in self._rows["paid", account_id]:
            payment = Payment(row.id, row.at, row.amount_paid, _lines(row, self._prices))
            plan = plan_paid_for(payment, plans)
            if plan is None or not pays_for_a_period(row.amount_paid, row.total):
                continue
            for line, told in zip(payment.lines, row.lines, strict=True):
                if not line.gives_back and plans.sold_by(line.price) is not None:
                    start, end = datetime.fromisoformat(told["start"]), datetime.fromisoformat(told["end"])
                    periods.append(Period(row.other, start, end, paid=True))
                    paid_plans[row.other, start] = plan.id
        periods += [
            Period(row.id, row.at, row.ends_at, paid=False)
            for row in self._rows["seen", account_id]
            if plans.sold_by(self._prices.get(row.other, Price(row.other))) is not None
        ]
        ended = {row.id: row.at for row in self._rows["ended", account_id]}
        return KnownPeriods(tuple(periods), ended, paid_plans)


async def told_of(transaction: Transaction, account_ids: Iterable[str], plans: Plans | None = None) -> Told:
    """What Stripe told of these accounts; `plans` as in :func:`understood`."""
    accounts = sorted(set(account_ids))
    [rows] = await database.at_once(transaction, (TOLD, {"accounts": accounts, "referral": None}))
    return await understood(transaction, rows, plans)


async def understood(transaction: Transaction, rows: Sequence[Any], plans: Plans | None = None) -> Told:
    """What Stripe told, from the rows of :data:`TOLD`.

    Args:
        transaction: the one in which they were read.
        rows: all of them.
        plans: on sale, where it matters by which plan a price is read. Of a price that sells no known plan nobody is
            told a plan until this transaction is over: what is decided by it is seen by whoever walks through its
            customers once it has a plan, or it is decided by that plan (`late_prices`).
    """
    # A price is nobody's: its lookup key stands where the others have their account.
    prices = {row.id: Price(row.id, row.account_id, row.other) for row in rows if row.kind == "price"}
    if plans is not None:
        named = {line["price"] for row in rows if row.kind == "paid" for line in row.lines}
        named |= {row.other for row in rows if row.kind == "seen"}
        unknown = {each for each in named if plans.sold_by(prices.get(each, Price(each))) is None}
        for price_id in sorted(unknown):
            await transaction.execute(select(func.pg_advisory_xact_lock_shared(price_lock(price_id))))
        prices |= await _prices(transaction, unknown)
    doubtful = [row.id for row in rows if row.kind == "reversed"]
    return Told(rows, prices, await reversals_of(transaction, doubtful))


async def payments_of(transaction: Transaction, account_id: str) -> list[Payment]:
    """All paid subscription invoices of an account's customers."""
    return (await payments_of_each(transaction, [account_id]))[account_id]


async def payments_of_each(transaction: Transaction, account_ids: Sequence[str]) -> Mapping[str, list[Payment]]:
    """The same, of each of some accounts; nothing of one that paid nothing."""
    told = await told_of(transaction, account_ids)
    return {account_id: told.payments(account_id) for account_id in account_ids}


async def of_account(transaction: Transaction, account_id: str, plans: Plans) -> KnownPeriods:
    """The billing periods of an account's subscriptions to plans. A free invoice (trial, full coupon) pays for none."""
    return (await told_of(transaction, [account_id], plans)).periods(account_id, plans)


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
