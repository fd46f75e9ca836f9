"""Spends bonus minutes, exactly once for each usage id (rule 21)."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from ledger import accounts, database, queries
from ledger.accounts import UnknownAccountError
from ledger.database import Transaction
from ledger.tables import entry, grant, ledger_now, operation
from program.spending import Draw, Spendable, draws


class UsageConflictError(Exception):
    """The usage id stands for another use already."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What became of a use, in minutes: from the bonus, from the plan, and what was left of the bonus then."""

    usage_id: str
    from_bonus: int
    from_plan: int
    available: int


async def spend(transaction: Transaction, account_id: str, usage_id: str, minutes: int) -> Usage:
    """Use minutes of an account: bonus minutes first, the soonest to expire first (rule 21).

    The time of recording decides which grants can still be used. The same id again gives the stored answer.

    Raises:
        UnknownAccountError: there is no such account.
        UsageConflictError: the id was used for another number of minutes.
        ValueError: fewer minutes than one.
    """
    if (await accounts.lock(transaction, [account_id])).get(account_id, True):
        raise UnknownAccountError(account_id)
    stored = (
        await transaction.execute(
            select(operation).where(operation.c.account_id == account_id, operation.c.usage_id == usage_id)
        )
    ).first()
    if stored is not None:
        if stored.minutes != minutes:
            raise UsageConflictError(usage_id)
        return Usage(usage_id, stored.from_bonus, stored.minutes - stored.from_bonus, stored.available)
    now = await database.now(transaction)
    rows = await transaction.execute(
        select(grant.c.grant_id, grant.c.remaining, grant.c.expires_at)
        .where(
            *queries.open_grants(account_id, now),
            grant.c.remaining > 0,
        )
        .order_by(grant.c.expires_at, grant.c.grant_id)
        # Each grant gives a minute at least.
        .limit(minutes)
    )
    taken = draws(minutes, [Spendable(*row) for row in rows], now)
    for draw in taken:
        await _draw(transaction, account_id, usage_id, draw)
    from_bonus = sum(draw.minutes for draw in taken)
    available = (await queries.usable(transaction, account_id, now)).minutes
    await transaction.execute(
        insert(operation).values(
            account_id=account_id,
            usage_id=usage_id,
            minutes=minutes,
            from_bonus=from_bonus,
            available=available,
            at=now,
        )
    )
    return Usage(usage_id, from_bonus, minutes - from_bonus, available)


async def _draw(transaction: Transaction, account_id: str, usage_id: str, draw: Draw) -> None:
    await transaction.execute(
        grant.update().where(grant.c.grant_id == draw.grant_id).values(remaining=grant.c.remaining - draw.minutes)
    )
    await transaction.execute(
        insert(entry).values(
            grant_id=draw.grant_id,
            account_id=account_id,
            kind="usage",
            delta=-draw.minutes,
            operation_key=f"usage:{usage_id}",
            at=ledger_now(),
        )
    )
