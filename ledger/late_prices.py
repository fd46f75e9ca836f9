"""A price whose plan becomes known only after it was sold: whom that concerns (rules 9 and 14).

Whoever comes last signals. What reads such a price as unknown holds a shared lock on its name until it commits
(`periods.of_account`); whoever names it has committed before it comes here, and waits for that lock once. So either the
reader saw the plan, or what the reader wrote is found here.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from sqlalchemy import exists, func, literal_column, or_, select, union
from sqlalchemy.dialects.postgresql import JSONB

from ledger import facts, periods, queries
from ledger.database import Transaction
from ledger.facts import News
from ledger.tables import customer, grant, ledger_now, paid_period, referral, seen_period
from program.plans import Plans
from program.referral import Stage

AT_ONCE = 100
"""How many accounts are looked at in one transaction."""

Begin = Callable[[], AbstractAsyncContextManager[Transaction]]


async def news(begin: Begin, told: News, plans: Plans, *, at_once: int = AT_ONCE) -> AsyncIterator[News]:
    """What the prices that an event named bring to those who have them already, in pages, each to be told in turn.

    Only accounts with a referral that waits, or with bonus minutes that can be used, are looked at, however many
    customers have the price.

    Args:
        begin: how a transaction is begun; each page has one of its own.
        told: what the event itself brought, committed by now; who is named there is not named again.
        plans: the plans on sale.
        at_once: how many accounts a page is about.
    """
    known = {waiting.referral_id for waiting in told.payments}
    for named in told.named:
        async with begin() as transaction:
            await transaction.execute(select(func.pg_advisory_xact_lock(periods.price_lock(named.price_id))))
        async with begin() as transaction:
            concerned = await _concerned(transaction, named.price_id)
        for first in range(0, len(concerned), at_once):
            async with begin() as transaction:
                page = concerned[first : first + at_once]
                found = await facts.news_of_accounts(transaction, page, plans, again=named.again)
            payments = tuple(waiting for waiting in found.payments if waiting.referral_id not in known)
            if payments or found.moved:
                yield replace(found, payments=payments)


async def _concerned(transaction: Transaction, price_id: str) -> list[str]:
    """The accounts that have a price, and something to gain by its plan, in the order of their ids."""
    prices = func.jsonb_path_query_array(paid_period.c.lines, literal_column("'$[*].price'"), type_=JSONB)
    having = union(
        select(seen_period.c.customer_id).where(seen_period.c.price_id == price_id),
        select(paid_period.c.customer_id).where(prices.contains(func.jsonb_build_array(price_id, type_=JSONB))),
    ).subquery()
    rows = await transaction.execute(
        select(customer.c.account_id)
        .join(having, having.c.customer_id == customer.c.customer_id)
        .where(
            or_(
                exists().where(
                    referral.c.referee_id == customer.c.account_id,
                    referral.c.stage.in_([stage for stage in Stage if stage.awaits_payment]),
                ),
                exists().where(grant.c.account_id == customer.c.account_id, *queries.open_at(ledger_now())),
            )
        )
        .distinct()
        .order_by(customer.c.account_id)
    )
    return [account_id for account_id in rows.scalars() if account_id is not None]
