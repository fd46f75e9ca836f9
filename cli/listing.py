"""Lists of referrals, a page at a time."""

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime

from rich.console import Console

from cli.answers import row, table
from ledger import inspection, invariants
from ledger.database import Database
from ledger.inspection import Page, Wanted
from program.doubts import Doubt
from program.eligibility import Refusal
from program.payments import Attention

REASONS = tuple(sorted({*map(str, Refusal), *map(str, Doubt), *map(str, Attention)}))
"""The words for why a referral was refused, is in doubt, or waits."""


class InvalidCursorError(Exception):
    """The cursor is none that a page ended with."""


def cursor_of(place: tuple[datetime, str] | None) -> str | None:
    """Where the next page begins, as one word; none where there is none."""
    if place is None:
        return None
    return urlsafe_b64encode(json.dumps([place[0].isoformat(), place[1]]).encode()).decode()


def place_of(cursor: str | None) -> tuple[datetime, str] | None:
    """The place that a cursor names.

    Raises:
        InvalidCursorError: it names none.
    """
    if cursor is None:
        return None
    try:
        at, referral_id = json.loads(urlsafe_b64decode(cursor.encode()))
        clicked_at = datetime.fromisoformat(at)
    except (binascii.Error, ValueError, TypeError):
        raise InvalidCursorError("give next_cursor of the page before, unchanged") from None
    if clicked_at.tzinfo is None or not isinstance(referral_id, str):
        raise InvalidCursorError("give next_cursor of the page before, unchanged")
    return clicked_at, referral_id


async def page_of(database: Database, wanted: Wanted, limit: int, cursor: str | None) -> Page:
    """A page.

    Raises:
        InvalidCursorError: the cursor is none.
    """
    after = place_of(cursor)
    async with database.snapshot() as transaction:
        await invariants.begin(transaction)
        return await inspection.find(transaction, wanted, limit, after)


def render(page: Page, to: Console) -> None:
    """Show a page, and how the next one is called up."""
    found = table("referral", "stage", "clicked", "referrer", "friend", "plan", "why")
    for each in page.referrals:
        stage = f"{each.stage}, void" if each.voided_at and each.credited_at else each.stage
        why = each.needs_attention or each.reason
        row(
            found,
            each.referral_id,
            stage,
            each.clicked_at,
            each.referrer_account_id,
            each.referee_account_id,
            each.plan,
            why,
        )
    to.print(found if page.referrals else "no referral is like that")
    if page.next is not None:
        to.print(f"\nmore: --cursor {cursor_of(page.next)}", soft_wrap=True)
