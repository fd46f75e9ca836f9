"""What was given back or is disputed: it finds its invoice, and whom that credited, in any order (rules 14 and 20)."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

from billing.events import reduce_event
from devstack.postgres import EmbeddedPostgres
from ledger import facts, periods, referrals
from ledger.database import Database
from ledger.facts import News
from program.doubts import Doubt
from program.payments import Payment
from program.plans import Plans
from program.referral import Stage
from program.signals import SignalPolicy
from tests.stripe_events import (
    Event,
    charge_refunded,
    checkout_completed,
    dispute,
    invoice_paid,
    paid_by,
    price,
    subscription,
    unique,
)
from tests.support import HASHES, MONTH, Books, DatabaseUrls, Member, copied_database, until

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
END = START + MONTH


def marked(news: News) -> tuple[tuple[str, Doubt], ...]:
    """Which referrals are marked for review, and why."""
    return tuple((doubtful.referral_id, doubtful.reason) for doubtful in news.reversed)


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


async def payments(books: Books, friend: Member) -> list[Payment]:
    """What the rules see of an account's payments, the earliest first."""
    async with books.database.transaction() as transaction:
        known = await periods.payments_of(transaction, friend.account_id)
    return sorted(known, key=lambda payment: (payment.paid_at, payment.invoice))


async def reversal(books: Books, friend: Member) -> tuple[int, bool]:
    """How much of an account's only payment was given back, and whether it is disputed."""
    (payment,) = await payments(books, friend)
    return payment.refunded, payment.disputed


# In any order, any number of times

TABLES = ("customer", "paid_period", "price", "invoice_payment", "refund", "dispute")


def _stream() -> list[Event]:
    """Payments of two customers, and all that became of them."""
    return [
        invoice_paid("cus_1", "sub_1", START, END, invoice_id="in_1"),
        paid_by("in_1", "pi_1", START),
        charge_refunded("pi_1", 900, customer="cus_1", charge_id="ch_1", created=at(10)),
        charge_refunded("pi_1", 2900, charge_id="ch_1", created=at(20)),
        charge_refunded(None, 400, customer="cus_1", charge_id="ch_1", created=at(5)),
        dispute("pi_1", "warning_needs_response", dispute_id="du_1", created=at(30)),
        dispute("pi_1", "warning_under_review", dispute_id="du_1", type_="updated", created=at(31)),
        dispute("pi_1", "warning_closed", dispute_id="du_1", type_="closed", created=at(32)),
        dispute("pi_2", "needs_response", dispute_id="du_2", created=at(40)),
        dispute(None, "under_review", dispute_id="du_2", type_="updated", created=at(41)),
        dispute("pi_2", "lost", dispute_id="du_2", type_="closed", created=at(42)),
        # An appeal: open again after the loss, and won.
        dispute("pi_2", "appeal_under_review", dispute_id="du_2", type_="updated", created=at(43)),
        dispute("pi_2", "won", dispute_id="du_2", type_="closed", created=at(44)),
        # Of one second: the doubtful one stays.
        dispute("pi_3", "won", dispute_id="du_3", type_="funds_reinstated", created=at(50)),
        dispute("pi_3", "lost", dispute_id="du_3", type_="closed", created=at(50)),
        dispute("pi_3", "under_review", dispute_id="du_3", type_="updated", created=at(51)),
        dispute("pi_4", "needs_response", dispute_id="du_4", created=at(60)),
        dispute("pi_4", "under_review", dispute_id="du_4", type_="funds_withdrawn", created=at(60)),
        invoice_paid("cus_2", "sub_2", START, END, invoice_id="in_2"),
        paid_by("in_2", None, START, charge="ch_2"),
        charge_refunded(None, 100, customer="cus_2", charge_id="ch_2"),
        price("price_pro", "pro", type_="created", created=START),
        price("price_pro", None, created=at(5)),
        price("price_2027", "pro", type_="created", created=at(5)),
    ]


STREAM = _stream()


class Shuffled:
    """A database in which one stream of events after the other comes in."""

    def __init__(self, urls: DatabaseUrls, plans: Plans, loop: asyncio.Runner) -> None:
        self._owner = urls.owner.replace("postgresql+psycopg://", "postgresql://")
        self._loop = loop
        self._plans = plans
        self.database = Database(urls.app, pool_size=1)
        self.expected = self.tables_after([(number, True) for number in range(len(STREAM))])

    def tables_after(self, deliveries: list[tuple[int, bool]]) -> dict[str, list[str]]:
        """What is in the tables once these events came in; each may be marked as signalled at once, or not."""
        with psycopg.connect(self._owner) as connection:
            for table in ("stripe_event", *TABLES[::-1]):
                connection.execute(f"DELETE FROM {table}".encode())  # noqa: S608
        self._loop.run(self._deliver(deliveries))
        with psycopg.connect(self._owner) as connection:
            return {
                table: sorted(repr(row) for row in connection.execute(f"SELECT * FROM {table}".encode()))  # noqa: S608
                for table in TABLES
            }

    def rows(self, statement: str) -> list[Any]:
        """What a query finds after the stream as it was sent."""
        self.tables_after([(number, True) for number in range(len(STREAM))])
        with psycopg.connect(self._owner) as connection:
            return connection.execute(statement.encode()).fetchall()

    async def _deliver(self, deliveries: list[tuple[int, bool]]) -> None:
        for number, marked in deliveries:
            reduced = reduce_event(STREAM[number])
            async with self.database.transaction() as transaction:
                await facts.apply_event(transaction, reduced, self._plans, HASHES)
                if marked:
                    await facts.mark_signalled(transaction, reduced.event_id)


@pytest.fixture(scope="module")
def shuffled(postgres: EmbeddedPostgres, template: str, plans: Plans) -> Iterator[Shuffled]:
    with asyncio.Runner() as loop:
        stream = Shuffled(copied_database(postgres, template, unique("shuffled_reversals")), plans, loop)
        yield stream
        loop.run(stream.database.close())


_ONCE = list(range(len(STREAM)))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    order=st.permutations(_ONCE),
    again=st.lists(st.tuples(st.integers(0, len(STREAM)), st.sampled_from(_ONCE)), max_size=8),
    marked=st.frozensets(st.sampled_from(_ONCE)),
)
@example(order=_ONCE[::-1], again=[], marked=frozenset())
@example(order=_ONCE[::-1], again=[(0, number) for number in _ONCE], marked=frozenset())
def test_rule_20_reversals_in_any_order_and_number_end_in_the_same_tables(
    shuffled: Shuffled, order: list[int], again: list[tuple[int, int]], marked: frozenset[int]
) -> None:
    deliveries = list(order)
    for position, number in again:
        deliveries.insert(position, number)
    assert shuffled.tables_after([(number, number in marked) for number in deliveries]) == shuffled.expected


def test_the_stream_ends_in_what_it_says(shuffled: Shuffled) -> None:
    """So that the test above compares something."""
    assert shuffled.rows("SELECT charge_id, payment_intent_id, amount_refunded FROM refund ORDER BY 1") == [
        ("ch_1", "pi_1", 2900),
        ("ch_2", None, 100),
    ]
    assert shuffled.rows("SELECT dispute_id, payment_intent_id, status, seen_at FROM dispute ORDER BY 1") == [
        ("du_1", "pi_1", "warning_closed", at(32)),
        ("du_2", "pi_2", "won", at(44)),
        ("du_3", "pi_3", "lost", at(50)),
        ("du_4", "pi_4", "under_review", at(60)),
    ]
    assert shuffled.rows("SELECT price_id, lookup_key FROM price ORDER BY 1") == [
        ("price_2027", "pro"),
        ("price_pro", "pro"),
    ]


DISPUTE_STORIES = {
    ("needs_response", "under_review", "won"): False,
    ("needs_response", "under_review", "lost"): True,
    ("warning_needs_response", "warning_under_review", "warning_closed"): False,
    ("lost", "appeal_under_review"): True,
    ("lost", "appeal_under_review", "won"): False,
    ("needs_response", "something_new"): True,
    ("prevented",): True,
}


@pytest.mark.parametrize("statuses", DISPUTE_STORIES)
async def test_rule_20_a_payment_is_disputed_unless_the_dispute_was_won_or_dropped(
    books: Books, statuses: tuple[str, ...]
) -> None:
    for order in itertools.permutations(enumerate(statuses)):
        friend, invoice, intent = await someone_who_paid(books)
        number = unique("du")
        for seconds, status in order:
            await books.report(dispute(intent, status, dispute_id=number, created=at(seconds)))
        assert await reversal(books, friend) == (0, DISPUTE_STORIES[statuses]), (invoice, order)


async def test_rule_20_of_two_disputes_one_that_is_not_won_is_enough(books: Books) -> None:
    friend, _, intent = await someone_who_paid(books)
    await books.report(dispute(intent, "won"), dispute(intent, "lost"), dispute(intent, "warning_closed"))
    assert await reversal(books, friend) == (0, True)


# The way from a charge to what it paid


async def someone_who_paid(books: Books, *, amount: int = 2900) -> tuple[Member, str, str]:
    """An account that paid, with the ids of its invoice and of the payment intent."""
    friend = await books.someone()
    await books.put(friend, linked=True)
    invoice, intent = unique("in"), unique("pi")
    await books.report(
        invoice_paid(friend.customer_id, friend.subscription_id, START, END, invoice_id=invoice, amount_paid=amount),
        paid_by(invoice, intent, START, amount=amount),
    )
    return friend, invoice, intent


@pytest.mark.parametrize("amount", [900, 2900])
@pytest.mark.parametrize("customer_named", [True, False])
async def test_rule_14_a_refund_finds_its_invoice_whatever_comes_first(
    books: Books, customer_named: bool, amount: int
) -> None:
    for order in itertools.permutations(range(4)):
        friend = await books.someone()
        invoice, intent = unique("in"), unique("pi")
        customer = friend.customer_id if customer_named else None
        events = [
            invoice_paid(friend.customer_id, friend.subscription_id, START, END, invoice_id=invoice),
            paid_by(invoice, intent, START),
            charge_refunded(intent, amount, customer=customer),
            checkout_completed(friend.customer_id, friend.account_id),
        ]
        await books.report(*(events[number] for number in order))
        (payment,) = await payments(books, friend)
        assert (payment.refunded, payment.disputed) == (amount, False), order
        assert (payment.real, payment.doubts) == (amount < 2900, (Doubt.REFUNDED_IN_PART,))


async def test_rule_14_of_one_charge_the_greatest_refund_wins_and_several_charges_add_up(books: Books) -> None:
    friend, invoice, first = await someone_who_paid(books)
    second = unique("pi")
    await books.report(paid_by(invoice, second, START, amount=1000))
    charge = unique("ch")
    await books.report(
        charge_refunded(first, 900, charge_id=charge),
        charge_refunded(first, 300, charge_id=charge),
        charge_refunded(second, 1000),
    )
    assert await reversal(books, friend) == (1900, False)


async def test_a_charge_without_an_intent_is_found_by_itself(books: Books) -> None:
    friend, invoice, _ = await someone_who_paid(books)
    charge = unique("ch")
    await books.report(
        dispute(None, "lost", charge_id=charge),
        paid_by(invoice, None, START, charge=charge),
        charge_refunded(None, 70, charge_id=charge),
    )
    assert await reversal(books, friend) == (70, True)


async def test_a_refund_of_another_payment_concerns_nobody_else(books: Books) -> None:
    friend, _, _ = await someone_who_paid(books)
    stranger, _, intent = await someone_who_paid(books)
    await books.report(charge_refunded(intent, 2900), dispute(intent, "lost"), charge_refunded(None, 5))
    assert await reversal(books, friend) == (0, False)
    assert await reversal(books, stranger) == (2900, True)


async def test_payments_without_an_intent_are_not_one_and_the_same(books: Books) -> None:
    """Two payments of which nothing is known, outside of Stripe, have nothing in common."""
    friend, invoice, _ = await someone_who_paid(books)
    await books.report(
        paid_by(invoice, None, START, payment_record="pr_1"), charge_refunded(None, 2900), dispute(None, "lost")
    )
    assert await reversal(books, friend) == (0, False)


@pytest.mark.parametrize(
    ("refunded", "expected"), [(100, (100, 100)), (2900, (2899, 2900)), (7900, (2899, 7899)), (10800, (2900, 7900))]
)
async def test_rule_14_of_a_payment_for_several_invoices_each_is_in_doubt_until_all_was_given_back(
    books: Books, refunded: int, expected: tuple[int, int]
) -> None:
    friend, intent = await books.someone(), unique("pi")
    await books.put(friend, linked=True)
    for number, amount in enumerate((2900, 7900)):
        invoice, start = unique("in"), START + number * MONTH
        of = (friend.customer_id, friend.subscription_id, start, start + MONTH)
        await books.report(
            invoice_paid(*of, invoice_id=invoice, amount_paid=amount), paid_by(invoice, intent, start, amount=amount)
        )
    await books.report(charge_refunded(intent, refunded, amount=10800))
    known = await payments(books, friend)
    assert tuple(payment.refunded for payment in known) == expected
    assert all(payment.doubts for payment in known)
    assert any(payment.real for payment in known) is (refunded < 10800)


async def test_a_reversal_of_nobody_known_is_stored_and_tells_nobody(books: Books) -> None:
    told = await books.report(charge_refunded("pi_x", 5, customer="cus_nobody"), dispute("pi_x", "lost"))
    assert told == [News(), News()]
    assert await books.rows("SELECT customer_id, account_id FROM customer") == [("cus_nobody", None)]
    assert await books.rows("SELECT amount_refunded FROM refund") == [(5,)]


# Before the credit


async def signed_up(books: Books) -> tuple[str, Member, Member]:
    """A referral that waits for a payment, its referrer and its friend."""
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    return referral_id, referrer, friend


async def test_rule_14_what_was_wholly_refunded_before_the_credit_brings_no_bonus_and_the_next_payment_does(
    books: Books,
) -> None:
    referral_id, _, friend = await signed_up(books)
    now = await books.clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    await books.report(
        subscription(*of),
        charge_refunded("pi_1", 2900, customer=friend.customer_id),
        paid_by("in_1", "pi_1", now),
        invoice_paid(*of, invoice_id="in_1"),
    )
    assert (await books.credit(referral_id)).stage is Stage.SIGNED_UP
    assert not await books.lots(friend)
    await books.report(invoice_paid(*of, invoice_id="in_2", paid_at=now + timedelta(seconds=1)))
    assert (await books.credit(referral_id)).stage is Stage.CREDITED
    assert await books.rows("SELECT qualifying_invoice FROM referral WHERE referral_id = :id", id=referral_id) == [
        ("in_2",)
    ]


async def test_a_reversal_before_the_credit_tells_nobody_of_a_payment(books: Books) -> None:
    """It is no payment; what it does to one is seen when the credit is made."""
    _, _, friend = await signed_up(books)
    now = await books.clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    told = await books.report(
        invoice_paid(*of, invoice_id="in_1"),
        charge_refunded("pi_1", 900, customer=friend.customer_id),
        paid_by("in_1", "pi_1", now),
        dispute("pi_1", "lost"),
    )
    assert [len(news.payments) for news in told] == [1, 0, 0, 0]
    assert not any(news.reversed for news in told)


# After the credit


async def credited(books: Books) -> tuple[str, Member, str, str]:
    """A credited referral and its friend, the invoice that brought it, and the intent behind that, yet unreported."""
    referral_id, _, friend = await signed_up(books)
    now = await books.clock.now()
    invoice, intent = unique("in"), unique("pi")
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    await books.report(subscription(*of), invoice_paid(*of, invoice_id=invoice))
    assert (await books.credit(referral_id)).stage is Stage.CREDITED
    return referral_id, friend, invoice, intent


REVERSALS: dict[str, tuple[list[dict[str, Any]], set[Doubt]]] = {
    "in part": ([{"refund": 900}], {Doubt.REFUNDED_IN_PART}),
    "whole": ([{"refund": 2900}], {Doubt.REFUNDED}),
    "in part, then whole": ([{"refund": 900}, {"refund": 2900}], {Doubt.REFUNDED}),
    "disputed": ([{"dispute": "needs_response"}], {Doubt.DISPUTED}),
    "lost": ([{"dispute": "lost"}], {Doubt.DISPUTED}),
    "both": ([{"refund": 1}, {"dispute": "lost"}], {Doubt.REFUNDED_IN_PART, Doubt.DISPUTED}),
    "won": ([{"dispute": "won"}], set()),
    "dropped": ([{"dispute": "warning_closed"}], set()),
}


@pytest.mark.parametrize("name", sorted(REVERSALS))
async def test_rule_20_whoever_comes_last_names_the_referral_and_why(books: Books, name: str) -> None:
    """The refund may come before the payment that tells which invoice it is of."""
    steps, reasons = REVERSALS[name]
    for order in itertools.permutations(range(len(steps) + 1)):
        referral_id, friend, invoice, intent = await credited(books)
        charge, number = unique("ch"), unique("du")
        events = [paid_by(invoice, intent, START)]
        for step in steps:
            if "refund" in step:
                events.append(charge_refunded(intent, step["refund"], customer=friend.customer_id, charge_id=charge))
            else:
                events.append(dispute(intent, step["dispute"], dispute_id=number, created=at(1)))
        before = await books.rows("SELECT stage, remaining FROM referral JOIN grant_lot USING (referral_id) ORDER BY 1")
        *_, last = await books.report(*(events[place] for place in order))
        assert {told.reason for told in last.reversed} == reasons, order
        assert {told.referral_id for told in last.reversed} <= {referral_id}
        assert not last.payments
        assert not last.moved
        # Nothing is taken back by itself.
        after = await books.rows("SELECT stage, remaining FROM referral JOIN grant_lot USING (referral_id) ORDER BY 1")
        assert after == before


async def test_rule_20_each_telling_of_a_refund_names_its_referral_until_it_is_marked(books: Books) -> None:
    referral_id, friend, invoice, intent = await credited(books)
    await books.report(paid_by(invoice, intent, START))
    part = charge_refunded(intent, 900, charge_id="ch_1")
    assert marked(await books.apply(part)) == ((referral_id, Doubt.REFUNDED_IN_PART),)
    assert marked(await books.apply(part)) == ((referral_id, Doubt.REFUNDED_IN_PART),)
    await books.report(part)
    assert await books.apply(part) == News()
    (whole,) = await books.report(charge_refunded(intent, 2900, customer=friend.customer_id, charge_id="ch_1"))
    assert marked(whole) == ((referral_id, Doubt.REFUNDED),)


async def test_rule_20_a_refund_of_a_later_payment_is_no_matter(books: Books) -> None:
    _, friend, invoice, intent = await credited(books)
    renewal, other = unique("in"), unique("pi")
    of = (friend.customer_id, friend.subscription_id, END, END + MONTH)
    told = await books.report(
        paid_by(invoice, intent, START),
        invoice_paid(*of, invoice_id=renewal),
        paid_by(renewal, other, END),
        charge_refunded(other, 2900, customer=friend.customer_id),
        dispute(other, "lost"),
    )
    assert not any(news.reversed for news in told)


# At the same time


async def test_rule_20_a_refund_and_the_way_to_its_invoice_at_the_same_time_are_not_lost(books: Books) -> None:
    """Each alone sees nothing; whoever commits last has to have waited for the other."""
    for first_is_refund in (True, False):
        referral_id, _, invoice, intent = await credited(books)
        events = [charge_refunded(intent, 2900), paid_by(invoice, intent, START)]
        told = await at_once(books, *(events if first_is_refund else events[::-1]))
        assert [len(news.reversed) for news in told] == [0, 1]
        assert marked(told[1]) == ((referral_id, Doubt.REFUNDED),)


async def test_rule_20_a_refund_waits_for_the_invoice_that_is_just_told(books: Books) -> None:
    """Its customer is known by the invoice alone: had it not waited, it would not see the credit, nor the credit it."""
    referral_id, _, friend = await signed_up(books)
    now = await books.clock.now()
    invoice, intent = unique("in"), unique("pi")
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    await books.report(subscription(*of), paid_by(invoice, intent, now))
    applied, done = asyncio.Event(), asyncio.Event()

    async def give_back() -> News:
        async with books.database.transaction() as transaction:
            news = await facts.apply_event(
                transaction, reduce_event(charge_refunded(intent, 2900)), books.plans, HASHES
            )
            applied.set()
            await done.wait()
        return news

    async def somebody_waits_or(event: asyncio.Event, task: "asyncio.Task[Any]") -> bool:
        return event.is_set() or await waiting_or_done(books, task)

    async with AsyncExitStack() as stack:
        transaction = await stack.enter_async_context(books.database.transaction())
        told = invoice_paid(*of, invoice_id=invoice)
        await facts.apply_event(transaction, reduce_event(told), books.plans, HASHES)
        refund = asyncio.create_task(give_back())
        await until(lambda: somebody_waits_or(applied, refund), bool)
    await applied.wait()
    credit = asyncio.create_task(books.credit(referral_id))
    await until(lambda: waiting_or_done(books, credit), bool)
    done.set()
    news, result = await refund, await credit
    assert (result.stage, bool(news.reversed)) in {(Stage.SIGNED_UP, False), (Stage.CREDITED, True)}


async def at_once(books: Books, first: Event, second: Event) -> list[News]:
    """Two events in two transactions: the second begins while the first is applied and not committed yet."""
    async with AsyncExitStack() as stack:
        transaction = await stack.enter_async_context(books.database.transaction())
        told = [await facts.apply_event(transaction, reduce_event(first), books.plans, HASHES)]
        other = asyncio.create_task(books.apply(second))
        await until(lambda: waiting_or_done(books, other), bool)
        await stack.aclose()
        told.append(await other)
    return told


async def waiting_or_done(books: Books, task: "asyncio.Task[Any]") -> bool:
    """Whether a transaction got as far as it gets: somebody waits for a lock, or it is through."""
    waiting = await books.rows("SELECT 1 FROM pg_locks WHERE NOT granted")
    return task.done() or bool(waiting)


async def test_rule_20_a_refund_while_the_credit_is_made_is_seen_by_one_of_them(books: Books) -> None:
    """Either the credit sees the refund, or the refund sees the credit."""
    for refund_first in (True, False):
        referral_id, _, friend = await signed_up(books)
        now = await books.clock.now()
        invoice, intent = unique("in"), unique("pi")
        of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
        await books.report(subscription(*of), invoice_paid(*of, invoice_id=invoice), paid_by(invoice, intent, now))
        refund = charge_refunded(intent, 2900)
        async with AsyncExitStack() as stack:
            transaction = await stack.enter_async_context(books.database.transaction())
            other: asyncio.Task[Any]
            if refund_first:
                await facts.apply_event(transaction, reduce_event(refund), books.plans, HASHES)
                other = asyncio.create_task(books.credit(referral_id))
            else:
                await referrals.credit_both(transaction, referral_id, books.plans, SignalPolicy())
                other = asyncio.create_task(books.apply(refund))
            await until(lambda: waiting_or_done(books, other), bool)  # noqa: B023
            await stack.aclose()
            result = await other
        if refund_first:
            assert result.stage is Stage.SIGNED_UP
        else:
            assert marked(result) == ((referral_id, Doubt.REFUNDED),)


async def test_rule_20_events_about_one_payment_from_everywhere_never_deadlock(books: Books) -> None:
    _, friend, invoice, intent = await credited(books)
    of = (friend.customer_id, friend.subscription_id, START, END)
    charge, number = unique("ch"), unique("du")
    events = [
        invoice_paid(*of, invoice_id=invoice, paid_at=await books.clock.now()),
        paid_by(invoice, intent, START),
        charge_refunded(intent, 900, customer=friend.customer_id, charge_id=charge),
        charge_refunded(intent, 2900, charge_id=charge),
        dispute(intent, "needs_response", charge_id=charge, dispute_id=number),
        dispute(intent, "lost", charge_id=charge, dispute_id=number, type_="closed"),
        subscription(*of),
    ]
    for _ in range(5):
        again = [document | {"id": unique("evt")} for document in events]
        await asyncio.gather(*(books.apply(document) for document in again))
    (row,) = await books.rows("SELECT amount_refunded, status FROM refund, dispute")
    assert row == (2900, "lost")


# What the application may do


async def test_the_application_stores_reversals_and_deletes_none(books: Books, owner: psycopg.Connection) -> None:
    await books.report(charge_refunded("pi_1", 5), dispute("pi_1", "lost"))
    for table in ("refund", "dispute"):
        with pytest.raises(DBAPIError, match="permission denied"):
            await books.rows(f"DELETE FROM {table}")  # noqa: S608
    with pytest.raises(psycopg.errors.CheckViolation):
        owner.execute("UPDATE refund SET amount_refunded = 0")


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        ("SELECT 1 FROM referral WHERE qualifying_invoice = 'in_1'", "referral_by_invoice"),
        ("SELECT 1 FROM refund WHERE payment_intent_id = 'pi_1'", "refund_by_intent"),
        ("SELECT 1 FROM dispute WHERE payment_intent_id = 'pi_1'", "dispute_by_intent"),
        ("SELECT 1 FROM dispute WHERE charge_id = 'ch_1'", "dispute_by_charge"),
        ("SELECT 1 FROM invoice_payment WHERE charge_id = 'ch_1'", "invoice_payment_by_charge"),
    ],
)
def test_what_is_looked_for_has_an_index(owner: psycopg.Connection, statement: str, index: str) -> None:
    owner.execute("SET enable_seqscan = off")
    plan = "\n".join(str(row[0]) for row in owner.execute(f"EXPLAIN {statement}".encode()))
    assert index in plan
