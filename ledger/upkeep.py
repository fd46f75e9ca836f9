"""What is looked through regularly: referrals that wait for an operator."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, or_, select

from ledger.database import Transaction
from ledger.tables import referral, referral_event
from program.referral import Stage


@dataclass(frozen=True, slots=True)
class Held:
    """A referral that waits for an operator (rules 19 and 20).

    Args:
        referral_id: which.
        stage: `in_review` where nobody was credited; another one where it is only marked.
        reasons: why, in words made for filters.
        since: when it came to its stage, UTC.
    """

    referral_id: str
    stage: Stage
    reasons: tuple[str, ...]
    since: datetime


_WAITS = or_(referral.c.stage == Stage.IN_REVIEW, func.cardinality(referral.c.review_reasons) > 0)


async def held(transaction: Transaction, limit: int, after: str = "") -> list[Held]:
    """A page of the referrals that wait for an operator, by their ids, beginning after one."""
    came = (
        select(func.max(referral_event.c.at))
        .where(referral_event.c.referral_id == referral.c.referral_id)
        .scalar_subquery()
    )
    rows = await transaction.execute(
        select(referral.c.referral_id, referral.c.stage, referral.c.review_reasons, came.label("since"))
        .where(
            _WAITS,
            referral.c.referral_id > after,
        )
        .order_by(referral.c.referral_id)
        .limit(limit)
    )
    return [Held(row.referral_id, Stage(row.stage), tuple(row.review_reasons), row.since) for row in rows]
