"""What is on record of doubts: which an operator approved of, and which came up after the credit (rules 19, 20)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.dialects.postgresql import insert

from ledger.database import Transaction
from ledger.happenings import What, happened
from ledger.tables import ledger_now, referral, referral_event, review
from program.doubts import Action, Approved, Doubt, approved_of


async def approvals(transaction: Transaction, row: Row[Any], now: frozenset[Doubt] = frozenset()) -> list[Approved]:
    """What an operator approved of.

    Args:
        transaction: within which.
        row: the referral.
        now: what is being approved of right now, for the invoice that the referral is held for.
    """
    known = await approvals_of_each(transaction, [row.referral_id])
    return [*known[row.referral_id], *(Approved(doubt, row.qualifying_invoice) for doubt in now)]


async def approvals_of_each(transaction: Transaction, referral_ids: Sequence[str]) -> Mapping[str, list[Approved]]:
    """What operators approved of, for each of these referrals; nothing of most."""
    decisions = await transaction.execute(
        select(review.c.referral_id, review.c.reasons, review.c.invoice_id).where(
            review.c.referral_id.in_(referral_ids), review.c.action == Action.APPROVE
        )
    )
    known: dict[str, list[Approved]] = defaultdict(list)
    for each in decisions:
        known[each.referral_id] += [Approved(Doubt(reason), each.invoice_id) for reason in each.reasons]
    return known


async def mark(transaction: Transaction, row: Row[Any], doubt: Doubt) -> bool:
    """Mark a referral, whose qualifying payment is in doubt, for an operator; nothing is taken back (rule 20).

    Returns:
        Whether it is marked now: an operator may have approved of this already, or voided the bonus.
    """
    if row.voided_at is not None or doubt in approved_of(await approvals(transaction, row), row.qualifying_invoice):
        return False
    marked = await transaction.execute(
        referral.update()
        .where(
            referral.c.referral_id == row.referral_id,
            func.array_position(referral.c.review_reasons, doubt.value).is_(None),
        )
        .values(
            review_reasons=func.array_append(referral.c.review_reasons, doubt.value),
            needs_attention=f"Marked for review: {doubt.words}",
        )
        .returning(referral.c.stage)
    )
    stage = marked.scalar_one_or_none()
    if stage is not None:
        happened(transaction, What.MARKED, reason=doubt)
        await transaction.execute(
            insert(referral_event).values(
                referral_id=row.referral_id, stage=stage, reason=f"Marked for review: {doubt.words}", at=ledger_now()
            )
        )
    return True
