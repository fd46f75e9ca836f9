"""Grants, which are lots of bonus minutes: credited, read, expired, voided (rules 6 to 9, 20 and 23).

Whoever changes a lot has locked its account, and reads the ledger's clock after that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select

from ledger import outbox, periods, queries
from ledger.database import Question, Transaction
from ledger.happenings import What, happened
from ledger.tables import account, entry, grant, ledger_now
from program.cycles import moved_expiry
from program.plans import Plans
from program.referral import Role


@dataclass(frozen=True, slots=True)
class MovedGrant:
    """A grant whose expiry moved (rule 9)."""

    referral_id: str
    role: Role
    expires_at: datetime


_CREDIT = """
WITH lot AS (
    INSERT INTO grant_lot (grant_id, account_id, referral_id, role, minutes, remaining, credited_at, expires_at)
    VALUES
        (%(referrer_lot)s, %(referrer)s, %(referral)s, 'referrer', %(minutes)s, %(minutes)s, %(at)s, %(referrer_end)s),
        (%(referee_lot)s, %(referee)s, %(referral)s, 'referee', %(minutes)s, %(minutes)s, %(at)s, %(referee_end)s)
    RETURNING *
), credited AS (
    INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)
    SELECT grant_id, account_id, 'credit', minutes, 'credit', credited_at FROM lot
)
UPDATE account SET minutes_earned = minutes_earned + minutes, subscribed = subscribed + (role = 'referrer')::integer
FROM lot WHERE account.account_id = lot.account_id
"""


def credit_both(row: Any, minutes: int, at: datetime, expires_at: Mapping[Role, datetime]) -> Question:
    """Credits both sides of a referral, whose accounts are locked, and counts the friend as a subscriber (rules 6, 12).

    One statement: the two lots, the journal, what both have earned. One side alone, the database would refuse (rule 6).
    """
    return _CREDIT, {
        "referral": row.referral_id,
        "referrer": row.referrer_id,
        "referee": row.referee_id,
        "referrer_lot": lot_id(row.referral_id, Role.REFERRER),
        "referee_lot": lot_id(row.referral_id, Role.REFEREE),
        "minutes": minutes,
        "at": at,
        "referrer_end": expires_at[Role.REFERRER],
        "referee_end": expires_at[Role.REFEREE],
    }


def lot_id(referral_id: str, role: Role) -> str:
    """The id of the lot that a side of a referral is credited with."""
    return f"{referral_id}-{role}"


async def of_referral(transaction: Transaction, referral_id: str) -> Sequence[Row[Any]]:
    """Both lots of a referral, locked, in the order of their accounts; none before the credit."""
    rows = await transaction.execute(
        select(grant).where(grant.c.referral_id == referral_id).order_by(grant.c.account_id).with_for_update()
    )
    return rows.all()


async def expire_open(transaction: Transaction, lot: Row[Any], at: datetime) -> int:
    """Expire what is unused of a lot that is due and has not ended (rule 7); gives how many minutes that were."""
    await _end(transaction, lot, "expiry", at)
    await transaction.execute(grant.update().where(grant.c.grant_id == lot.grant_id).values(remaining=0, expired_at=at))
    await outbox.bonus_expired(transaction, lot.grant_id, at, lot.remaining)
    happened(transaction, What.MINUTES_EXPIRED, lot.remaining, role=lot.role)
    return int(lot.remaining)


async def void_open(transaction: Transaction, lot: Row[Any], at: datetime) -> int:
    """Void what is unused of a lot that has not ended; used minutes stay used, and earned (rules 12, 20 and 23).

    Returns:
        How many minutes were taken back, none below zero.
    """
    await _end(transaction, lot, "void", at)
    await transaction.execute(grant.update().where(grant.c.grant_id == lot.grant_id).values(remaining=0, voided_at=at))
    await transaction.execute(
        account.update()
        .where(account.c.account_id == lot.account_id)
        .values(minutes_earned=account.c.minutes_earned - lot.remaining)
    )
    await outbox.bonus_voided(transaction, lot.grant_id, at, lot.remaining)
    happened(transaction, What.MINUTES_VOIDED, lot.remaining, role=lot.role)
    return int(lot.remaining)


async def _end(transaction: Transaction, lot: Row[Any], kind: str, at: datetime) -> None:
    """Write the end of a lot into the journal. A lot is over once: the database refuses a second end."""
    await transaction.execute(
        entry.insert().values(
            grant_id=lot.grant_id,
            account_id=lot.account_id,
            kind=kind,
            delta=-lot.remaining,
            operation_key=kind,
            at=at,
        )
    )


async def expired_minutes(transaction: Transaction, lot: Row[Any]) -> int:
    """How many minutes of a lot expired unused."""
    return (await transaction.execute(queries.expired_minutes(lot.grant_id))).scalar_one()


async def voided_minutes(transaction: Transaction, lot: Row[Any]) -> int:
    """How many minutes of a lot were voided."""
    return (await transaction.execute(queries.ended_minutes(lot.grant_id, "void"))).scalar_one()


async def move_expiry(transaction: Transaction, lot: Row[Any], plans: Plans) -> datetime:
    """Where rule 9 puts a lot's expiry now, stored where it moved."""
    known = await periods.of_account(transaction, lot.account_id, plans)
    return await _move(transaction, lot, known)


async def move_expiries(
    transaction: Transaction, account_id: str, plans: Plans, *, again: bool = False
) -> list[MovedGrant]:
    """Apply rule 9 to the open lots of an account, which is locked, after facts of its periods came in.

    Returns:
        The grants that moved; with `again`, the others as well, for they may have moved before without a word.
    """
    lots = (
        await transaction.execute(
            select(grant).where(*queries.open_grants(account_id, ledger_now())).order_by(grant.c.grant_id)
        )
    ).all()
    if not lots:
        return []
    known = await periods.of_account(transaction, account_id, plans)
    moved: list[MovedGrant] = []
    for lot in lots:
        expires_at = await _move(transaction, lot, known)
        if again or expires_at != lot.expires_at:
            moved.append(MovedGrant(lot.referral_id, Role(lot.role), expires_at))
    return moved


async def _move(transaction: Transaction, lot: Row[Any], known: periods.KnownPeriods) -> datetime:
    expires_at = moved_expiry(lot.expires_at, lot.credited_at, known.periods)
    if expires_at != lot.expires_at:
        await transaction.execute(grant.update().where(grant.c.grant_id == lot.grant_id).values(expires_at=expires_at))
    return expires_at
