"""What is stored together: events that come at once share a transaction, and none of them another's fate."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from billing.events import reduce_event
from billing.facts import EventFacts, Fact, PeriodPaid, PeriodSeen
from ledger import accounts, database, facts
from ledger.database import Database, Transaction
from ledger.tables import stripe_event
from starter.keeping import SLOW_SECONDS, TOGETHER, Keeping
from tests.stripe_events import checkout_completed, invoice_paid, line, subscription, unique
from tests.support import HASHES, MONTH, Books, DatabaseUrls, Member

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(params=["as in production", "with a clock that can be moved"])
async def keeping(request: pytest.FixtureRequest, books: Books, database_urls: DatabaseUrls) -> AsyncIterator[Keeping]:
    """Stores into the database of the books."""
    if request.param == "as in production":
        database = Database(database_urls.app)
        # Two connections are there already: how long one takes to be made is not what is looked at.
        async with database.statement() as one, database.statement() as two:
            await one.execute(text("SELECT 1"))
            await two.execute(text("SELECT 1"))
        yield Keeping(database, HASHES, lone=True)
        await database.close()
    else:
        yield Keeping(books.database, HASHES, lone=True)


def paid(member: Member | None = None, start: datetime = START, **invoice: Any) -> EventFacts:
    """A payment of a member's; of a customer that nobody has reported, unless told."""
    customer, own = (member.customer_id, member.subscription_id) if member else (unique("cus"), unique("sub"))
    return reduce_event(invoice_paid(customer, own, start, start + MONTH, **invoice))


def period_paid(event: EventFacts) -> PeriodPaid:
    """What a payment says."""
    (fact,) = event.facts
    assert isinstance(fact, PeriodPaid)
    return fact


async def keep_all(keeping: Keeping, events: Iterable[EventFacts]) -> list[bool]:
    """Deliver events at once; whether each was kept."""
    async with asyncio.timeout(10):
        return await asyncio.gather(*(keeping.keep(event) for event in events))


async def set_out() -> None:
    """Let those who have asked be under way."""
    for _ in range(10):
        await asyncio.sleep(0)


async def is_stored(books: Books, event: EventFacts) -> bool:
    """Whether an event is stored, with its invoice and its customer; it must be all of it, or nothing."""
    fact = period_paid(event)
    rows = [
        await books.rows(
            "SELECT 1 FROM stripe_event WHERE event_id = :id AND signalled_at IS NOT NULL", id=event.event_id
        ),
        await books.rows("SELECT 1 FROM paid_period WHERE invoice_id = :id", id=fact.invoice_id),
        await books.rows("SELECT 1 FROM customer WHERE customer_id = :id", id=fact.customer_id),
    ]
    assert len({bool(each) for each in rows}) == 1
    return bool(rows[0])


async def test_events_at_once_are_each_stored_once_and_in_few_transactions(books: Books, keeping: Keeping) -> None:
    events = [paid() for _ in range(3 * TOGETHER)]
    assert all(await keep_all(keeping, events))
    assert all([await is_stored(books, event) for event in events])
    assert await books.rows("SELECT count(*) FROM paid_period") == [(len(events),)]
    ((transactions,),) = await books.rows("SELECT count(DISTINCT xmin::text) FROM stripe_event")
    assert transactions <= 6


async def test_an_event_alone_is_left_to_its_own_road_and_several_are_kept(books: Books) -> None:
    keeping, alone, (first, second) = Keeping(books.database, HASHES), paid(), (paid(), paid())
    assert await keep_all(keeping, [alone]) == [False]
    assert not await is_stored(books, alone)
    assert await keep_all(keeping, [first, second]) == [True, True]
    assert await keep_all(keeping, [alone]) == [False]


@pytest.mark.parametrize("later", range(16))
async def test_whoever_comes_while_one_alone_is_answered_is_answered_too(books: Books, later: int) -> None:
    keeping = Keeping(books.database, HASHES)
    async with asyncio.timeout(10):
        first = asyncio.create_task(keeping.keep(paid()))
        for _ in range(later):
            await asyncio.sleep(0)
        await asyncio.gather(first, keeping.keep(paid()))


@pytest.mark.parametrize("goes_away", [False, True], ids=["the process is busy", "the first one goes away"])
async def test_whoever_comes_when_a_journey_sets_out_for_nothing_is_answered(books: Books, goes_away: bool) -> None:
    for before, between in itertools.product(range(6), range(8)):
        keeping = Keeping(books.database, HASHES)
        first = asyncio.create_task(keeping.keep(paid()))
        for _ in range(before):
            await asyncio.sleep(0)
        if goes_away:
            first.cancel()
        else:
            time.sleep(SLOW_SECONDS + 0.01)  # noqa: ASYNC251 - the process is busy, and hears of all that happened at once
        for _ in range(between):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await keeping.keep(paid())


async def test_what_is_said_to_be_stored_is_committed(books: Books, keeping: Keeping) -> None:
    async def kept_and_seen(event: EventFacts) -> bool:
        return await keeping.keep(event) and await is_stored(books, event)

    assert all(await asyncio.gather(*(kept_and_seen(paid()) for _ in range(30))))


async def test_the_same_event_many_times_at_once_is_stored_once(books: Books, keeping: Keeping) -> None:
    event = paid()
    assert all(await keep_all(keeping, [event] * 20 + [paid(), event]))
    assert all(await keep_all(keeping, [event] * 3))
    assert await books.rows("SELECT count(*) FROM paid_period") == [(2,)]
    assert await books.rows("SELECT count(*) FROM stripe_event") == [(2,)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_several_events_of_one_invoice_at_once_merge_as_in_any_order(
    books: Books, keeping: Keeping, order: tuple[int, ...]
) -> None:
    customer, own, invoice = unique("cus"), unique("sub"), unique("in")
    lines = [line("pro", START, START + MONTH, 2900), line("starter", START, START + MONTH, 100)]
    told = [
        invoice_paid(customer, own, START, START + MONTH, invoice_id=invoice, paid_at=START + DAY, lines=lines),
        invoice_paid(customer, own, START, START + MONTH, invoice_id=invoice, paid_at=START, amount_paid=100),
        invoice_paid(customer, own, START, START + MONTH, invoice_id=invoice, paid_at=START + 2 * DAY, total=4000),
    ]
    # Others between them, so that there are journeys under way.
    events = [event for place in order for event in (paid(), reduce_event(told[place]))]
    assert all(await keep_all(keeping, events))
    row = await books.rows(
        """SELECT paid_at, amount_paid, total, jsonb_array_length(lines), told_at FROM paid_period
        WHERE invoice_id = :id""",
        id=invoice,
    )
    assert row == [(START, 2900, 4000, 2, START)]


async def test_several_events_of_one_customer_at_once_are_all_kept(books: Books, keeping: Keeping) -> None:
    member = await books.someone()
    events = [paid(member, START + number * MONTH) for number in range(12)]
    seen = [
        EventFacts(
            unique("evt"), "seen", START, (PeriodSeen(member.subscription_id, member.customer_id, "p", START, end),)
        )
        for end in (START + 3 * DAY, START + 9 * DAY, START + DAY)
    ]
    assert all(await keep_all(keeping, [*events, *seen]))
    assert await books.rows("SELECT count(*) FROM paid_period") == [(12,)]
    assert await books.rows("SELECT ends_at FROM seen_period") == [(START + 9 * DAY,)]


async def test_an_event_that_tells_anything_else_or_one_thing_twice_is_not_kept(books: Books, keeping: Keeping) -> None:
    one = period_paid(paid())
    twice: tuple[Fact, ...] = (one, replace(one, amount_paid=1))
    others = [
        EventFacts(unique("evt"), "twice", START, twice),
        reduce_event(subscription(unique("cus"), unique("sub"), START, START + MONTH)),
        reduce_event(checkout_completed(unique("cus"), "account-1")),
    ]
    assert await keep_all(keeping, others) == [False, False, False]
    assert await books.rows("SELECT 1 FROM stripe_event") == []
    assert await books.rows("SELECT 1 FROM customer") == []


# Whom an event concerns


async def _awaiting(books: Books) -> EventFacts:
    referrer, friend = await books.subscriber(), await books.someone()
    await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    return paid(friend)


async def _reserved(books: Books) -> EventFacts:
    referrer, friend = await books.subscriber(), await books.someone()
    await books.reserve(await books.click(referrer), referrer, friend)
    await books.put(friend, linked=True)
    return paid(friend)


async def _open_bonus(books: Books) -> EventFacts:
    referrer, friend = await books.subscriber(), await books.someone()
    await books.credited(referrer, friend)
    return paid(referrer)


async def _qualifying_invoice(books: Books) -> EventFacts:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.credited(referrer, friend)
    books.clock.advance(2 * MONTH)
    await books.expire(referral_id)
    ((invoice, customer),) = await books.rows(
        "SELECT qualifying_invoice, customer_id FROM referral JOIN paid_period ON invoice_id = qualifying_invoice"
    )
    assert customer == friend.customer_id
    assert not await books.rows("SELECT 1 FROM grant_lot WHERE expired_at IS NULL")
    return paid(friend, invoice_id=invoice)


async def _erased(books: Books) -> EventFacts:
    member = await books.subscriber("erased")
    await books.erase(member)
    return paid(member)


async def _not_reported(books: Books) -> EventFacts:
    member = await books.someone()
    await books.report(checkout_completed(member.customer_id, member.account_id))
    return paid(member)


CONCERNED: dict[str, Callable[[Books], Awaitable[EventFacts]]] = {
    "rule 14: its payment is waited for": _awaiting,
    "rule 14: its signup is not attributed yet": _reserved,
    "rule 9: it has a bonus that may move": _open_bonus,
    "rule 20: its invoice brought a bonus": _qualifying_invoice,
    "rule 23: its account was erased": _erased,
    "a checkout named an account that is not reported yet": _not_reported,
}


@pytest.mark.parametrize("why", CONCERNED)
async def test_rules_9_and_14_an_event_that_concerns_a_run_is_left_alone_and_the_others_are_kept(
    books: Books, keeping: Keeping, why: str
) -> None:
    event = await CONCERNED[why](books)
    before = (
        await books.rows("SELECT * FROM paid_period ORDER BY 1"),
        await books.rows("SELECT * FROM customer ORDER BY 1"),
    )
    assert not await keeping.keep(event)
    assert await books.rows("SELECT 1 FROM stripe_event WHERE event_id = :id", id=event.event_id) == []
    assert before == (
        await books.rows("SELECT * FROM paid_period ORDER BY 1"),
        await books.rows("SELECT * FROM customer ORDER BY 1"),
    )
    others = [paid() for _ in range(12)]
    assert await keep_all(keeping, [*others[:6], event, *others[6:]]) == [True] * 6 + [False] + [True] * 6
    assert all([await is_stored(books, each) for each in others])
    assert await books.rows("SELECT 1 FROM stripe_event WHERE event_id = :id", id=event.event_id) == []


async def test_rule_14_an_event_left_alone_still_brings_its_news(books: Books, keeping: Keeping) -> None:
    event = await _awaiting(books)
    assert await keep_all(keeping, [paid(), event, paid()]) == [True, False, True]
    async with books.database.transaction() as transaction:
        news = await facts.apply_event(transaction, event, books.plans, HASHES)
    assert len(news.payments) == 1


async def test_a_member_who_waits_for_nothing_is_kept(books: Books, keeping: Keeping) -> None:
    members = [await books.subscriber() for _ in range(3)]
    assert all(await keep_all(keeping, [paid(member) for member in members]))


# Whom others hold up


async def _hold_customer(transaction: Transaction, event: EventFacts, _: Member) -> None:
    await accounts.lock_customer(transaction, period_paid(event).customer_id, HASHES)


async def _hold_invoice(transaction: Transaction, event: EventFacts, _: Member) -> None:
    await database.at_once(transaction, database.locking(f"invoice {period_paid(event).invoice_id}"))


async def _hold_account(transaction: Transaction, _: EventFacts, member: Member) -> None:
    await accounts.lock(transaction, [member.account_id])


@pytest.mark.parametrize("hold", [_hold_customer, _hold_invoice, _hold_account])
async def test_what_somebody_else_is_busy_with_holds_up_nobody(
    books: Books, keeping: Keeping, hold: Callable[[Transaction, EventFacts, Member], Awaitable[None]]
) -> None:
    member = await books.subscriber()
    event, others = paid(member), [paid() for _ in range(12)]
    async with books.database.transaction() as slow:
        await hold(slow, event, member)
        assert await keep_all(keeping, [*others[:6], event, *others[6:]]) == [True] * 6 + [False] + [True] * 6
        assert not await keeping.keep(event)
    assert all([await is_stored(books, each) for each in others])
    assert await books.rows("SELECT 1 FROM stripe_event WHERE event_id = :id", id=event.event_id) == []
    assert await keeping.keep(event)


async def test_an_event_that_somebody_else_is_just_storing_is_not_waited_for_long(
    books: Books, keeping: Keeping
) -> None:
    """Its company is not kept either: each then waits for itself alone."""
    event, *others = [paid() for _ in range(6)]
    async with books.database.transaction() as slow:
        row = {"event_id": event.event_id, "type": event.type, "created_at": START, "received_at": START}
        await slow.execute(insert(stripe_event).values(**row))
        assert not await keeping.keep(event)
        kept = await keep_all(keeping, [*others, event])
        assert not kept[-1]
    assert [await is_stored(books, each) for each in others] == kept[:-1]
    assert all(await keep_all(keeping, others))
    assert not await keeping.keep(event), "it is stored, and nobody knows who was told"


async def test_a_slow_journey_is_waited_for_only_by_those_who_take_turns_with_it(
    books: Books, keeping: Keeping
) -> None:
    member = await books.someone()
    stuck, after, *others = paid(member), paid(member, START + MONTH), *(paid() for _ in range(12))
    answered: dict[str, bool] = {}

    async def ask(event: EventFacts) -> None:
        answered[event.event_id] = await keeping.keep(event)

    async with books.database.transaction() as slow:
        row = {"event_id": stuck.event_id, "type": stuck.type, "created_at": START, "received_at": START}
        await slow.execute(insert(stripe_event).values(**row))
        async with asyncio.timeout(10), asyncio.TaskGroup() as asking:
            asking.create_task(ask(stuck))
            await set_out()
            for event in (after, *others):
                asking.create_task(ask(event))
    assert next(iter(answered)) != stuck.event_id, "it asked first, and went alone"
    assert answered == {event.event_id: event is not stuck for event in (stuck, after, *others)}
    assert all([await is_stored(books, event) for event in (after, *others)])


# Whom others' errors concern


@pytest.mark.parametrize("place", [0, 7, 19])
async def test_an_event_that_the_database_refuses_is_nobody_elses_error(
    books: Books, keeping: Keeping, place: int
) -> None:
    events = [paid() for _ in range(20)]
    bad = replace(events[place], facts=(replace(period_paid(events[place]), amount_paid=-1),))
    events[place] = bad
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(keeping.keep(event) for event in events), return_exceptions=True)
    assert isinstance(answers.pop(place), DBAPIError)
    assert answers == [True] * 19
    assert [await is_stored(books, event) for event in events if event is not bad] == [True] * 19
    assert await books.rows("SELECT 1 FROM stripe_event WHERE event_id = :id", id=bad.event_id) == []


async def test_whoever_goes_away_takes_nobody_along(books: Books, keeping: Keeping) -> None:
    events = [paid() for _ in range(40)]
    asking = [asyncio.create_task(keeping.keep(event)) for event in events]
    await asyncio.sleep(0)
    for each in asking[2::4]:
        each.cancel()  # while it waits
    await set_out()
    for each in asking[3::4]:
        each.cancel()  # while it is under way
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*asking, return_exceptions=True)
    stayed = [number for number in range(len(events)) if number % 4 < 2]
    assert [answers[number] for number in stayed] == [True] * len(stayed)
    assert all([await is_stored(books, events[number]) for number in stayed])
    assert all(await keep_all(keeping, events)), "what was not heard of may come again"
    assert await books.rows("SELECT count(*) FROM stripe_event") == [(40,)]
