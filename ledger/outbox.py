"""What the backend is told: written in the transaction of what happened, delivered later by runs of its own."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import Row, delete, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from ledger import accounts, database
from ledger.database import Question, Transaction
from ledger.happenings import What, happened
from ledger.tables import account, delivery, endpoint_gone, grant, outbox, referral
from program.notifications import (
    KEPT,
    LOOKED_FOR_AFTER,
    REMINDER,
    STARTED_AGAIN_AFTER,
    STARTED_BY_THEN,
    TOO_OLD,
    Kind,
    happens_again,
    kind_of_stage,
    message_id,
    reminder_due,
)
from program.referral import Role, Stage

GONE = "the endpoint answered 410 Gone before"
"""Why nothing is sent to an endpoint."""


class UnknownMessageError(Exception):
    """The outbox holds no such message, or no longer."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it is delivered: what happened, when (UTC), and the particulars."""

    type: str
    at: datetime
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lot:
    """An open bonus: its id and its end, to go on from, and whose it is."""

    grant_id: str
    account_id: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Credited:
    """A bonus that is credited just now: what is told of it.

    Args:
        grant_id: its id.
        account_id: whose.
        role: on which side of the referral.
        plan: that was paid for.
        minutes: how many.
        remaining: as many.
        expires_at: its end, UTC.
        erased_at: when its account was erased, if it was: nobody can use it then (rule 23).
    """

    grant_id: str
    account_id: str
    role: Role
    plan: str
    minutes: int
    remaining: int
    expires_at: datetime
    erased_at: datetime | None


async def record(
    transaction: Transaction,
    kind: Kind,
    referral_id: str,
    account_id: str | None,
    at: datetime,
    data: Mapping[str, Any],
    occasion: str = "",
) -> None:
    """Write down that something happened, in the transaction in which it did. The same thing again is not written.

    Args:
        transaction: the one of the change.
        kind: what happened.
        referral_id: to which referral.
        account_id: to whose bonus; none where it concerns the referral itself.
        at: when, UTC, by the ledger's clock.
        data: the particulars; nothing personal (rule 24). The ids of both sides are added.
        occasion: which time, of what can happen more than once.
    """
    sides = (
        await transaction.execute(
            select(referral.c.referral_id, referral.c.referrer_id, referral.c.referee_id).where(
                referral.c.referral_id == referral_id
            )
        )
    ).one()
    await _write(transaction, [_message(kind, sides, account_id, at, data, occasion)])


def _message(
    kind: Kind,
    sides: Any,
    account_id: str | None,
    at: datetime,
    data: Mapping[str, Any],
    occasion: str = "",
) -> dict[str, Any]:
    """A row of the outbox, of a referral whose ids `sides` has."""
    ids = {
        "referral_id": sides.referral_id,
        "referrer_account_id": sides.referrer_id,
        "referee_account_id": sides.referee_id,
    }
    return {
        "message_id": message_id(kind, sides.referral_id, account_id, occasion),
        "type": kind,
        "referral_id": sides.referral_id,
        "account_id": account_id,
        "data": {**ids, **data},
        "created_at": at.isoformat(),
        "due_at": (at + STARTED_BY_THEN).isoformat(),
    }


async def _write(transaction: Transaction, messages: Sequence[Mapping[str, Any]]) -> None:
    [new] = await database.at_once(transaction, writing(messages))
    announce(transaction, new)


def writing(messages: Sequence[Mapping[str, Any]]) -> Question:
    """Writes messages down, all at once; gives those that were not there before, to be announced."""
    return _WRITE, {"messages": Jsonb(messages)}


def announce(transaction: Transaction, new: Iterable[Any]) -> None:
    """Have messages that were written in a transaction announced once it is committed."""
    for row in new:
        database.written(transaction, row.message_id)


_WRITE = """
INSERT INTO outbox (message_id, type, referral_id, account_id, data, created_at, due_at)
SELECT message_id, type, referral_id, account_id, data, created_at, due_at
FROM jsonb_populate_recordset(NULL::outbox, %(messages)s) ON CONFLICT (message_id) DO NOTHING RETURNING message_id
"""


async def stage_reached(
    transaction: Transaction, event_id: int, referral_id: str, stage: Stage, at: datetime, reason: str | None
) -> None:
    """Tell that a referral has come to a stage, where the backend is told of it (rules 6, 19 and 22).

    Of the credit each side is told for itself: `bonuses_credited`.

    Args:
        transaction: the one of the change, which is made already.
        event_id: the entry of the referral's story.
        referral_id: which.
        stage: which.
        at: when, UTC, by the ledger's clock.
        reason: why, in words that a support agent can read out.
    """
    kind = kind_of_stage(stage)
    if kind is None:
        return
    row = (
        await transaction.execute(
            select(
                referral.c.referral_id, referral.c.referrer_id, referral.c.referee_id, referral.c.review_reasons
            ).where(referral.c.referral_id == referral_id)
        )
    ).one()
    data = {"stage": stage, "reason": reason, "review_reasons": row.review_reasons}
    occasion = str(event_id) if happens_again(kind) else ""
    await _write(transaction, [_message(kind, row, None, at, data, occasion)])


def signed_up(row: Any, at: datetime) -> list[dict[str, Any]]:
    """What is told of a signup that was attributed just now."""
    data: dict[str, Any] = {"stage": Stage.SIGNED_UP, "reason": None, "review_reasons": []}
    return [_message(Kind.REFERRAL_SIGNED_UP, row, None, at, data)]


def bonuses_credited(lots: Sequence[Credited], row: Any, at: datetime) -> list[dict[str, Any]]:
    """What each side is told of its bonus (rule 6), and of its end where that is near already.

    Args:
        lots: both, as they were credited just now.
        row: the referral.
        at: when, UTC, by the ledger's clock.
    """
    told = [_bonus(Kind.BONUS_CREDITED, row, lot, at) for lot in lots]
    return told + [reminder for lot in lots for reminder in _reminders(row, lot, at)]


async def bonus_expired(transaction: Transaction, grant_id: str, at: datetime, minutes: int) -> None:
    """Tell one side that its bonus is over, and how many minutes expired unused, which can be none (rule 7)."""
    lot = await _lot(transaction, grant_id)
    await _write(transaction, [_bonus(Kind.BONUS_EXPIRED, lot, lot, at, expired_minutes=minutes)])


async def bonus_voided(transaction: Transaction, grant_id: str, at: datetime, minutes: int) -> None:
    """Tell one side that its bonus was voided, and how many unused minutes went, which can be none (rule 20)."""
    lot = await _lot(transaction, grant_id)
    await _write(transaction, [_bonus(Kind.BONUS_VOIDED, lot, lot, at, voided_minutes=minutes)])


async def _lot(transaction: Transaction, grant_id: str) -> Row[Any]:
    query = (
        select(grant, referral.c.referrer_id, referral.c.referee_id, referral.c.plan, account.c.erased_at)
        .join(referral, referral.c.referral_id == grant.c.referral_id)
        .join(account, account.c.account_id == grant.c.account_id)
    )
    row: Row[Any] = (await transaction.execute(query.where(grant.c.grant_id == grant_id))).one()
    return row


def _bonus(kind: Kind, sides: Any, lot: Any, at: datetime, occasion: str = "", **more: object) -> dict[str, Any]:
    """What happened to a bonus, with how it stands in this transaction."""
    return _message(kind, sides, lot.account_id, at, {**_particulars(lot), **more}, occasion)


def _reminders(sides: Any, lot: Any, at: datetime) -> list[dict[str, Any]]:
    """One, if its owner is to be told that a bonus ends soon, once for each end that it has had (rule 9).

    Nobody is reminded of what nobody can use: all is used, or the account was erased (rule 23).
    """
    if lot.remaining > 0 and lot.erased_at is None and reminder_due(lot.expires_at, at):
        return [_bonus(Kind.BONUS_EXPIRING, sides, lot, at, lot.expires_at.isoformat())]
    return []


def _particulars(lot: Any) -> dict[str, Any]:
    return {
        "grant_id": lot.grant_id,
        "account_id": lot.account_id,
        "role": lot.role,
        "plan": lot.plan,
        "minutes": lot.minutes,
        "remaining": lot.remaining,
        "expires_at": lot.expires_at.isoformat(),
    }


# Reminders


async def ending_soon(transaction: Transaction, now: datetime, limit: int, after: Lot | None = None) -> list[Lot]:
    """A page of the open bonuses whose owners are to be reminded, by their ends; some have been."""
    query = select(grant.c.grant_id, grant.c.account_id, grant.c.expires_at).where(
        grant.c.expired_at.is_(None), grant.c.voided_at.is_(None), grant.c.remaining > 0, grant.c.expires_at > now
    )
    query = query.where(grant.c.expires_at <= now + REMINDER)
    if after is not None:
        query = query.where(tuple_(grant.c.expires_at, grant.c.grant_id) > tuple_(after.expires_at, after.grant_id))
    rows = await transaction.execute(query.order_by(grant.c.expires_at, grant.c.grant_id).limit(limit))
    return [Lot(*row) for row in rows]


async def remind_owner(transaction: Transaction, bonus: Lot) -> None:
    """Remind the owner of a bonus, if it still ends soon with minutes left."""
    await accounts.lock(transaction, [bonus.account_id])
    at = await database.now(transaction)
    lot = await _lot(transaction, bonus.grant_id)
    if lot.expired_at is None and lot.voided_at is None:
        await _write(transaction, _reminders(lot, lot, at))


# Deliveries


async def take_due(transaction: Transaction, limit: int) -> list[str]:
    """Some messages that nobody seems to deliver, for the caller to have them delivered; others leave these alone."""
    now = await database.now(transaction)
    chosen = (
        select(outbox.c.message_id)
        .where(outbox.c.due_at <= now, outbox.c.created_at > now - TOO_OLD)
        .order_by(outbox.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = await transaction.execute(
        outbox.update()
        .where(outbox.c.message_id.in_(chosen.scalar_subquery()))
        .values(due_at=now + STARTED_AGAIN_AFTER)
        .returning(outbox.c.message_id)
    )
    return list(rows.scalars())


async def begin(
    transaction: Transaction, message: str, endpoints: Sequence[str], again: Collection[str] = ()
) -> list[str]:
    """Begin to deliver a message; gives the endpoints that it has to go to.

    An endpoint that is gone is passed over, and that is written down.

    Args:
        transaction: within which.
        message: its id.
        endpoints: those that there are.
        again: those to which it goes whatever became of it there before, for somebody asks for it.

    Raises:
        UnknownMessageError: there is no such message.
    """
    now = await database.now(transaction)
    found = await transaction.execute(
        outbox.update()
        .where(outbox.c.message_id == message)
        .values(due_at=now + LOOKED_FOR_AFTER)
        .returning(outbox.c.message_id)
    )
    if found.scalar() is None:
        raise UnknownMessageError(message)
    over = set(await transaction.scalars(select(delivery.c.endpoint).where(delivery.c.message_id == message)))
    gone = set(await transaction.scalars(select(endpoint_gone.c.endpoint)))
    for endpoint in sorted(set(endpoints) & gone - over - set(again)):
        await give_up(transaction, message, endpoint, GONE)
        happened(transaction, What.DELIVERED, outcome="given_up", endpoint=endpoint)
    return [name for name in endpoints if name in again or name not in over | gone]


async def message(transaction: Transaction, wanted: str) -> Message:
    """A message.

    Raises:
        UnknownMessageError: there is no such message.
    """
    row = (await transaction.execute(select(outbox).where(outbox.c.message_id == wanted))).first()
    if row is None:
        raise UnknownMessageError(wanted)
    return Message(row.type, row.created_at, row.data)


async def delivered(transaction: Transaction, message: str, endpoint: str) -> None:
    """Write down that an endpoint has taken a message; one that was gone is there again."""
    values = {"state": "delivered", "problem": None, "at": await database.now(transaction)}
    await transaction.execute(
        insert(delivery)
        .values(message_id=message, endpoint=endpoint, **values)
        .on_conflict_do_update(index_elements=[delivery.c.message_id, delivery.c.endpoint], set_=values)
    )
    await transaction.execute(delete(endpoint_gone).where(endpoint_gone.c.endpoint == endpoint))
    happened(transaction, What.DELIVERED, outcome="delivered", endpoint=endpoint)


async def give_up(transaction: Transaction, message: str, endpoint: str, problem: str) -> None:
    """Write down that an endpoint has not taken a message, and why; one that had taken it before stays so."""
    values = {"state": "given_up", "problem": problem, "at": await database.now(transaction)}
    await transaction.execute(
        insert(delivery)
        .values(message_id=message, endpoint=endpoint, **values)
        .on_conflict_do_update(
            index_elements=[delivery.c.message_id, delivery.c.endpoint],
            set_=values,
            where=delivery.c.state != "delivered",
        )
    )


async def endpoint_is_gone(transaction: Transaction, endpoint: str) -> None:
    """Write down that an endpoint wants nothing any more."""
    await transaction.execute(
        insert(endpoint_gone).values(endpoint=endpoint, since=await database.now(transaction)).on_conflict_do_nothing()
    )


async def end(transaction: Transaction, message: str, given_up: Mapping[str, str]) -> None:
    """Write down that the delivery of a message is over, with the endpoints that have not taken it and why."""
    for endpoint, problem in given_up.items():
        await give_up(transaction, message, endpoint, problem)
    ended = await transaction.execute(
        outbox.update()
        .where(outbox.c.message_id == message, outbox.c.due_at.is_not(None))
        .values(due_at=None)
        .returning(outbox.c.message_id)
    )
    # Said once more, it has ended before.
    for endpoint in given_up if ended.scalar() else ():
        happened(transaction, What.DELIVERED, outcome="given_up", endpoint=endpoint)


async def tidy(transaction: Transaction, limit: int) -> int:
    """Forget some of what is too old to be delivered, and throw away some of what is over long since.

    Returns:
        How many messages that were; as many as `limit`, and there may be more.
    """
    now = await database.now(transaction)
    late = select(outbox.c.message_id).where(outbox.c.due_at <= now, outbox.c.created_at <= now - TOO_OLD).limit(limit)
    forgotten = await transaction.execute(
        outbox.update()
        .where(outbox.c.message_id.in_(late.with_for_update(skip_locked=True).scalar_subquery()))
        .values(due_at=None)
        .returning(outbox.c.message_id)
    )
    old = select(outbox.c.message_id).where(outbox.c.created_at <= now - KEPT, outbox.c.due_at.is_(None)).limit(limit)
    thrown_away = await transaction.execute(
        delete(outbox)
        .where(outbox.c.message_id.in_(old.with_for_update(skip_locked=True).scalar_subquery()))
        .returning(outbox.c.message_id)
    )
    return max(len(forgotten.all()), len(thrown_away.all()))


async def undelivered(transaction: Transaction, limit: int, after: str = "") -> list[str]:
    """A page of the messages that are not delivered to everybody yet and are not given up, by their ids."""
    now = await database.now(transaction)
    rows = await transaction.execute(
        select(outbox.c.message_id)
        .where(outbox.c.due_at.is_not(None), outbox.c.created_at > now - TOO_OLD, outbox.c.message_id > after)
        .order_by(outbox.c.message_id)
        .limit(limit)
    )
    return list(rows.scalars())
