"""Batches: what an operator does to many referrals at once, kept so that a batch that was cut short goes on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, func, or_, select
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert

from ledger.database import Transaction
from ledger.tables import batch, batch_item, ledger_now

EXAMPLES = 3
"""How many referrals are named of those to which the same happened."""

_AT_ONCE = 5_000


class BatchAction(StrEnum):
    """What can be done to many referrals at once."""

    RETRY = "retry"
    APPROVE = "approve"
    REJECT = "reject"
    VOID = "void"


class ItemState(StrEnum):
    """What became of a referral of a batch; a failed one is tried again."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Order:
    """What a batch does.

    Args:
        batch_id: of the batch; the same one again is the same batch.
        action: what is done to each referral.
        by: who decides, by an id; none of a retry.
        note: why; none of a retry.
        wanted: how the referrals were chosen, as it was said.
    """

    batch_id: str
    action: BatchAction
    by: str | None
    note: str | None
    wanted: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Alike:
    """How many referrals it happened to, in these words, and some of them."""

    words: str
    number: int
    examples: list[str]


@dataclass(frozen=True, slots=True)
class Tally:
    """How far a batch is.

    Args:
        chosen: how many referrals it has.
        done: to how many it was done.
        left: how many it has not come to yet.
        refused: those of which it cannot be, in which words.
        failed: those that could not be reached, in which words; tried again when the batch goes on.
    """

    chosen: int
    done: int
    left: int
    refused: list[Alike] = field(default_factory=list)
    failed: list[Alike] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch, when it began (UTC), and how far it is."""

    order: Order
    begun_at: datetime
    tally: Tally


def _order(row: Row[Any]) -> Order:
    return Order(row.batch_id, BatchAction(row.action), row.decided_by, row.note, dict(row.wanted))


async def known(transaction: Transaction, batch_id: str) -> Order | None:
    """The batch of that id, if there is one."""
    row = (await transaction.execute(select(batch).where(batch.c.batch_id == batch_id))).first()
    return _order(row) if row else None


async def begin(transaction: Transaction, order: Order, referral_ids: Sequence[str]) -> Order:
    """Write down what a batch does and to which referrals: all in this transaction, or nothing.

    Returns:
        The batch of that id: this one, or what was begun under it before, to which nothing is added.
    """
    made = await transaction.execute(
        insert(batch)
        .values(
            batch_id=order.batch_id,
            action=order.action,
            decided_by=order.by,
            note=order.note,
            wanted=order.wanted,
            begun_at=ledger_now(),
        )
        .on_conflict_do_nothing()
        .returning(batch.c.batch_id)
    )
    if made.first() is not None:
        for first in range(0, len(referral_ids), _AT_ONCE):
            part = referral_ids[first : first + _AT_ONCE]
            await transaction.execute(
                insert(batch_item).values([{"batch_id": order.batch_id, "referral_id": each} for each in part])
            )
    return _order((await transaction.execute(select(batch).where(batch.c.batch_id == order.batch_id))).one())


async def left(transaction: Transaction, batch_id: str, limit: int, after: str = "") -> list[str]:
    """A page of the referrals that a batch has still to come to, failed ones too, in the order of their ids."""
    rows = await transaction.execute(
        select(batch_item.c.referral_id)
        .where(
            batch_item.c.batch_id == batch_id,
            batch_item.c.referral_id > after,
            or_(batch_item.c.state.is_(None), batch_item.c.state == ItemState.FAILED),
        )
        .order_by(batch_item.c.referral_id)
        .limit(limit)
    )
    return list(rows.scalars())


async def record(transaction: Transaction, batch_id: str, referral_id: str, state: ItemState, words: str) -> None:
    """Write down what became of a referral of a batch; what is done or refused stays so."""
    await transaction.execute(
        batch_item.update()
        .where(
            batch_item.c.batch_id == batch_id,
            batch_item.c.referral_id == referral_id,
            or_(batch_item.c.state.is_(None), batch_item.c.state == ItemState.FAILED),
        )
        .values(state=state, words=words, at=ledger_now())
    )


async def tally(transaction: Transaction, batch_id: str) -> Tally:
    """How far a batch is."""
    rows = await transaction.execute(
        select(
            batch_item.c.state,
            batch_item.c.words,
            func.count().label("number"),
            func.array_agg(aggregate_order_by(batch_item.c.referral_id, batch_item.c.referral_id)).label("ids"),
        )
        .where(batch_item.c.batch_id == batch_id, or_(batch_item.c.state.is_(None), batch_item.c.state != "done"))
        .group_by(batch_item.c.state, batch_item.c.words)
        .order_by(func.count().desc(), batch_item.c.words)
    )
    alike: dict[str, list[Alike]] = {ItemState.REFUSED: [], ItemState.FAILED: []}
    not_yet = 0
    for row in rows:
        if row.state is None:
            not_yet += row.number
        else:
            alike[row.state].append(Alike(row.words, row.number, row.ids[:EXAMPLES]))
    chosen = (await transaction.execute(select(func.count()).where(batch_item.c.batch_id == batch_id))).scalar_one()
    others = not_yet + sum(each.number for kind in alike.values() for each in kind)
    return Tally(chosen, chosen - others, not_yet, alike[ItemState.REFUSED], alike[ItemState.FAILED])


async def newest(transaction: Transaction, limit: int) -> list[Begun]:
    """The batches begun last, the newest first."""
    rows = await transaction.execute(select(batch).order_by(batch.c.begun_at.desc(), batch.c.batch_id).limit(limit))
    return [Begun(_order(row), row.begun_at, await tally(transaction, row.batch_id)) for row in rows.all()]
