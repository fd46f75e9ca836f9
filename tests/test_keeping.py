"""What is stored together: events that come at once share a transaction, and none of them another's fate."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from billing.events import reduce_event
from billing.facts import EventFacts
from starter.keeping import Keeping
from tests.stripe_events import Event, invoice_paid, unique
from tests.support import HASHES, MONTH, Books

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def keeping(books: Books) -> Keeping:
    return Keeping(books.database, HASHES)


def payment(**invoice: object) -> EventFacts:
    """Of a customer that nobody has reported."""
    return reduce_event(invoice_paid(unique("cus"), unique("sub"), START, START + MONTH, **invoice))


async def test_events_at_once_are_all_stored_once(books: Books, keeping: Keeping) -> None:
    events = [payment() for _ in range(150)]
    assert all(await asyncio.gather(*(keeping.keep(each) for each in events)))
    assert await books.rows("SELECT count(*) FROM paid_period") == [(150,)]
