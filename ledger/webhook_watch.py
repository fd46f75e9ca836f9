"""Whether Stripe's events come with signatures that fit: when one last did, and how many did not since then."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import case, func, select
from sqlalchemy.dialects.postgresql import insert

from ledger.database import Transaction
from ledger.tables import ledger_now, webhook_watch


@dataclass(frozen=True, slots=True)
class WebhookWatch:
    """What was seen of signatures.

    Args:
        verified_at: when one last fitted, UTC; none where none ever did.
        refused_at: when one last did not, UTC; none where all did.
        refused: how many have not since one last did, at least: of many at once not each is counted.
    """

    verified_at: datetime | None = None
    refused_at: datetime | None = None
    refused: int = 0


async def saw(transaction: Transaction, *, verified: bool, refused: int) -> None:
    """Write down what came.

    Args:
        transaction: within which.
        verified: whether a signature fitted.
        refused: how many did not; where one fitted, how many did not after it.
    """
    statement = insert(webhook_watch).values(
        only_row=True,
        verified_at=ledger_now() if verified else None,
        refused_at=ledger_now() if refused else None,
        refused=refused,
    )
    new = statement.excluded
    await transaction.execute(
        statement.on_conflict_do_update(
            index_elements=[webhook_watch.c.only_row],
            set_={
                "verified_at": func.coalesce(new.verified_at, webhook_watch.c.verified_at),
                "refused_at": func.coalesce(new.refused_at, webhook_watch.c.refused_at),
                "refused": case(
                    (new.verified_at.is_not(None), new.refused), else_=webhook_watch.c.refused + new.refused
                ),
            },
        )
    )


async def seen(transaction: Transaction) -> WebhookWatch:
    """What was seen so far."""
    row = (await transaction.execute(select(webhook_watch))).first()
    return WebhookWatch(row.verified_at, row.refused_at, row.refused) if row else WebhookWatch()
