"""What Stripe's facts say of an account: its billing periods, its payments, its prices."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select

from ledger.database import Transaction
from ledger.tables import customer, paid_period, price, seen_period, subscription
from program.cycles import Period
from program.payments import Line, Payment, plan_paid_for
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


async def _prices(transaction: Transaction, ids: set[str]) -> dict[str, Price]:
    if not ids:
        return {}
    rows = await transaction.execute(select(price).where(price.c.price_id.in_(ids)))
    return {row.price_id: Price(row.price_id, row.lookup_key, row.product_id) for row in rows}


def _known(prices: dict[str, Price], line: dict[str, Any]) -> Price:
    """What is known of a line's price: what was seen of it, completed by the product that the line itself names."""
    seen = prices.get(line["price"], Price(line["price"]))
    return Price(seen.id, seen.lookup_key, seen.product or line.get("product"))


def _lines(row: Row[Any], prices: dict[str, Price]) -> tuple[Line, ...]:
    return tuple(Line(_known(prices, line), line["proration"], line["amount"]) for line in row.lines)


async def _invoices(transaction: Transaction, account_id: str) -> Sequence[Row[Any]]:
    rows = await transaction.execute(
        select(paid_period)
        .join(customer, customer.c.customer_id == paid_period.c.customer_id)
        .where(customer.c.account_id == account_id)
    )
    return rows.all()


def _price_ids(invoices: Sequence[Row[Any]]) -> set[str]:
    return {line["price"] for row in invoices for line in row.lines}


async def payments_of(transaction: Transaction, account_id: str) -> list[Payment]:
    """All paid subscription invoices of an account's customers."""
    invoices = await _invoices(transaction, account_id)
    prices = await _prices(transaction, _price_ids(invoices))
    return [Payment(row.invoice_id, row.paid_at, row.amount_paid, _lines(row, prices)) for row in invoices]


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
    prices = await _prices(transaction, _price_ids(invoices) | {row.price_id for row in seen})
    periods: list[Period] = []
    paid_plans: dict[tuple[str, datetime], str] = {}
    for row in invoices:
        if max(row.amount_paid, row.total) <= 0:
            continue
        plan = plan_paid_for(Payment(row.invoice_id, row.paid_at, row.amount_paid, _lines(row, prices)), plans)
        for line in row.lines:
            if plan is not None and plans.sold_by(_known(prices, line)) is not None:
                start = datetime.fromisoformat(line["start"])
                periods.append(Period(row.subscription_id, start, datetime.fromisoformat(line["end"]), paid=True))
                paid_plans[row.subscription_id, start] = plan.id
    periods += [
        Period(row.subscription_id, row.starts_at, row.ends_at, paid=False)
        for row in seen
        if plans.sold_by(prices.get(row.price_id, Price(row.price_id))) is not None
    ]
    return KnownPeriods(tuple(periods), {row.subscription_id: row.ended_at for row in ended}, paid_plans)
