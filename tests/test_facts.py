"""Stripe's facts: in any order and any number they end in the same tables, and whoever is concerned hears of them."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from billing.events import reduce_event
from billing.facts import EventFacts, PeriodPaid
from devstack.postgres import EmbeddedPostgres
from ledger import facts, periods
from ledger.database import Database
from ledger.facts import News
from ledger.referrals import AttributionResult
from program.cycles import Period
from program.eligibility import Refusal
from program.plans import Plans
from program.referral import Role, Stage
from tests.stripe_events import (
    Event,
    checkout_completed,
    event,
    invoice_paid,
    invoice_payment_paid,
    line,
    paid_by,
    price,
    subscription,
    unique,
)
from tests.support import HASHES, MONTH, Books, DatabaseUrls, Member, copied_database

DAY = timedelta(days=1)
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
END = START + MONTH


async def apply(books: Books, *events: EventFacts) -> list[News]:
    """Apply facts that need no Stripe event around them."""
    news = []
    for each in events:
        async with books.database.transaction() as transaction:
            news.append(await facts.apply_event(transaction, each, books.plans, HASHES))
    return news


# In any order, any number of times

FACT_TABLES = ("identity", "customer", "paid_period", "seen_period", "subscription", "price", "invoice_payment")
# When something was stored differs from run to run; what was stored must not.
STORED_AT = {"linked_at", "first_seen_at"}


def _later(document: Event, seconds: int, **changes: Any) -> Event:
    """The same object in a later event, with changes."""
    return event(document["type"], document["data"]["object"] | changes, START + timedelta(seconds=seconds))


def _stream() -> list[Event]:
    """A customer's events, awkward ones among them."""
    of = ("cus_1", "sub_1", START, END)
    created = subscription(*of, status="incomplete", created=START)
    updated = subscription(*of, type_="customer.subscription.updated", created=START + timedelta(seconds=5))
    longer = subscription("cus_1", "sub_1", START, END + 3 * DAY, created=START + timedelta(seconds=9))
    paid = invoice_paid(*of, invoice_id="in_1", paid_at=START + timedelta(seconds=3))
    again = _later(paid, 8, status_transitions={"paid_at": None})
    renewal = invoice_paid(
        "cus_1",
        "sub_1",
        END,
        END + MONTH,
        invoice_id="in_2",
        lines=[line("power", END, END + MONTH, 7900), line("pro", END, END + MONTH, -100, proration=True)],
    )
    partly = _later(renewal, 70, lines={"data": renewal["data"]["object"]["lines"]["data"][:1]})
    keys = [
        subscription(*of, lookup_key=key, created=START + timedelta(seconds=at))
        for key, at in (("starter", 20), ("power", 30), ("starter", 40), ("pro", 40))
    ]
    removed = subscription(*of, created=START + timedelta(seconds=50))
    removed["data"]["object"]["items"]["data"][0]["price"]["lookup_key"] = None
    ended = [
        subscription(
            *of,
            status="canceled",
            ended_at=at,
            type_="customer.subscription.deleted",
            created=END,
            lookup_key="starter",
        )
        for at in (END - DAY, None)
    ]
    # A price may lose its key: what was seen before is not forgotten.
    for document in ended:
        document["data"]["object"]["items"]["data"][0]["price"]["lookup_key"] = None
    return [
        created,
        updated,
        longer,
        paid,
        again,
        renewal,
        partly,
        *keys,
        removed,
        *ended,
        invoice_paid("cus_1", "sub_1", START - DAY, START, invoice_id="in_0", amount_paid=0),
        invoice_payment_paid("in_1", START),
        checkout_completed("cus_1", "account-1"),
        checkout_completed("cus_2", "account-1"),
    ]


STREAM = _stream()


@pytest.fixture(scope="module")
def shuffled(postgres: EmbeddedPostgres, template: str, plans: Plans) -> Iterator["Shuffled"]:
    with asyncio.Runner() as loop:
        stream = Shuffled(copied_database(postgres, template, unique("shuffled")), plans, loop)
        yield stream
        loop.run(stream.database.close())


class Shuffled:
    """A database in which one stream of events after the other comes in."""

    def __init__(self, urls: DatabaseUrls, plans: Plans, loop: asyncio.Runner) -> None:
        self._owner = urls.owner.replace("postgresql+psycopg://", "postgresql://")
        self._loop = loop
        self._plans = plans
        self.database = Database(urls.app, pool_size=1)
        self.expected = self.tables_after([(number, False) for number in range(len(STREAM))])

    def tables_after(self, deliveries: list[tuple[int, bool]]) -> dict[str, list[dict[str, Any]]]:
        """What is in the tables once these events came in; each may be marked as signalled at once, or not."""
        with psycopg.connect(self._owner) as connection:
            for table in ("stripe_event", *FACT_TABLES[::-1]):
                connection.execute(f"DELETE FROM {table}".encode())  # noqa: S608
        self._loop.run(self._deliver(deliveries))
        with psycopg.connect(self._owner) as connection:
            return {table: self._contents(connection, table) for table in FACT_TABLES}

    async def _deliver(self, deliveries: list[tuple[int, bool]]) -> None:
        for number, marked in deliveries:
            reduced = reduce_event(STREAM[number])
            async with self.database.transaction() as transaction:
                await facts.apply_event(transaction, reduced, self._plans, HASHES)
                if marked:
                    await facts.mark_signalled(transaction, reduced.event_id)

    @staticmethod
    def _contents(connection: psycopg.Connection[Any], table: str) -> list[dict[str, Any]]:
        cursor = connection.execute(f"SELECT * FROM {table}".encode())  # noqa: S608
        names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor]
        return sorted(({name: row[name] for name in row.keys() - STORED_AT} for row in rows), key=_sorted)


def _sorted(row: dict[str, Any]) -> str:
    return repr(sorted(row.items()))


_ONCE = list(range(len(STREAM)))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    order=st.permutations(_ONCE),
    again=st.lists(st.tuples(st.integers(0, len(STREAM)), st.sampled_from(_ONCE)), max_size=6),
    marked=st.frozensets(st.sampled_from(_ONCE)),
)
@example(order=_ONCE[::-1], again=[], marked=frozenset())
def test_facts_in_any_order_and_number_end_in_the_same_tables(
    shuffled: Shuffled, order: list[int], again: list[tuple[int, int]], marked: frozenset[int]
) -> None:
    deliveries = list(order)
    for at, number in again:
        deliveries.insert(at, number)
    assert shuffled.tables_after([(number, number in marked) for number in deliveries]) == shuffled.expected


def test_the_stream_ends_in_what_it_says(shuffled: Shuffled) -> None:
    """So that the test above compares something."""
    tables = shuffled.expected
    assert {(row["invoice_id"], row["paid_at"], row["amount_paid"]) for row in tables["paid_period"]} == {
        ("in_0", START - DAY, 0),
        ("in_1", START + timedelta(seconds=3), 2900),
        ("in_2", END, 2900),
    }
    assert [len(row["lines"]) for row in tables["paid_period"] if row["invoice_id"] == "in_2"] == [2]
    assert [(row["starts_at"], row["ends_at"]) for row in tables["seen_period"]] == [(START, END + 3 * DAY)]
    assert [(row["price_id"], row["lookup_key"]) for row in tables["price"]] == [("price_pro", "starter")]
    assert [(row["subscription_id"], row["ended_at"]) for row in tables["subscription"]] == [("sub_1", END - DAY)]
    assert {row["customer_id"] for row in tables["customer"] if row["account_id"] == "account-1"} == {"cus_1", "cus_2"}
    assert len(tables["invoice_payment"]) == 1
    assert len(tables["identity"]) == 2


# Single facts


async def known_periods(books: Books, account_id: str) -> periods.KnownPeriods:
    async with books.database.transaction() as transaction:
        return await periods.of_account(transaction, account_id, books.plans)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_of_a_period_seen_the_greatest_end_wins(books: Books, order: tuple[int, ...]) -> None:
    ends = [END - DAY, END, END + DAY]
    for at in order:
        await books.report(subscription("cus_1", "sub_1", START, ends[at]))
    await books.report(checkout_completed("cus_1", "account-1"))
    known = await known_periods(books, "account-1")
    assert known.periods == (Period("sub_1", START, END + DAY, paid=False),)


async def test_a_period_is_known_however_late_its_customer_and_account_are(books: Books) -> None:
    """Checkout can be quicker than the backend's call that reports the account."""
    friend = await books.someone()
    now = await books.clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    await books.report(invoice_paid(*of), subscription(*of))
    assert (await known_periods(books, friend.account_id)).periods == ()
    await books.report(checkout_completed(friend.customer_id, friend.account_id))
    await books.put(friend)
    known = await known_periods(books, friend.account_id)
    assert {period.paid for period in known.periods} == {True, False}
    paid = next(period for period in known.periods if period.paid)
    assert known.plan_in(paid) == "pro"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_the_lookup_key_seen_last_wins_and_one_taken_away_is_not_forgotten(
    books: Books, order: tuple[int, ...]
) -> None:
    """A new price takes the key over (`transfer_lookup_key`): both prices still sell the plan."""
    of = ("cus_1", "sub_1", START, END)
    old = subscription(*of, lookup_key="pro", created=START)
    without = subscription(*of, created=START + timedelta(seconds=5))
    without["data"]["object"]["items"]["data"][0]["price"]["lookup_key"] = None
    new = subscription(*of, lookup_key="pro", created=START + timedelta(seconds=5))
    new["data"]["object"]["items"]["data"][0]["price"]["id"] = "price_pro_2027"
    events = [old, without, new]
    for at in order:
        await books.report(events[at])
    rows = await books.rows("SELECT price_id, lookup_key, product_id FROM price ORDER BY price_id")
    assert rows == [("price_pro", "pro", "prod_pro"), ("price_pro_2027", "pro", "prod_pro")]


async def test_rule_18_the_first_account_linked_keeps_a_customer(books: Books) -> None:
    first, second = await books.someone("first"), await books.someone("second")
    await books.put(first)
    await books.report(checkout_completed("cus_1", first.account_id), checkout_completed("cus_1", second.account_id))
    second.customer_id = "cus_1"
    await books.put(second, linked=True)
    assert await books.rows("SELECT account_id FROM customer") == [(first.account_id,)]
    assert len(await books.rows("SELECT 1 FROM identity WHERE kind = 'customer'")) == 2


async def test_an_account_may_have_several_customers(books: Books) -> None:
    friend = await books.someone()
    await books.put(friend, linked=True)
    await books.report(checkout_completed("cus_second", friend.account_id))
    await books.report(invoice_paid("cus_second", "sub_second", START, END))
    async with books.database.transaction() as transaction:
        assert [payment.paid_at for payment in await periods.payments_of(transaction, friend.account_id)] == [START]


@pytest.mark.parametrize("payment_first", [True, False])
async def test_an_invoice_and_the_payment_behind_it_are_one_payment(books: Books, payment_first: bool) -> None:
    """`invoice.paid` and `invoice_payment.paid` come for the same invoice, in either order."""
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    now = await books.clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    events = [invoice_paid(*of, invoice_id="in_1"), invoice_payment_paid("in_1", now)]
    told = await books.report(*(reversed(events) if payment_first else events))
    assert sorted(len(news.payments) for news in told) == [0, 1]
    assert (await books.credit(referral_id)).stage is Stage.CREDITED
    assert await books.rows("SELECT invoice_id FROM invoice_payment") == [("in_1",)]
    async with books.database.transaction() as transaction:
        assert len(await periods.payments_of(transaction, friend.account_id)) == 1


async def test_an_invoice_s_line_that_names_its_product_needs_no_price_to_be_seen(books: Books) -> None:
    """A plan sold by product is known from the invoice alone."""
    friend = await books.someone()
    await books.put(friend, linked=True)
    by_product = replace(books.plans.named("pro"), lookup_keys=frozenset(), products=frozenset({"prod_pro"}))
    plans = Plans([by_product])
    now = await books.clock.now()
    await books.report(invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH))
    async with books.database.transaction() as transaction:
        known = await periods.of_account(transaction, friend.account_id, plans)
    (period,) = known.periods
    assert known.plan_in(period) == "pro"


# Who hears of it


async def waiting(books: Books) -> tuple[str, Member]:
    """A referral that waits for its friend's payment."""
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    return referral_id, friend


async def test_a_known_event_signals_again_until_it_is_marked(books: Books) -> None:
    referral_id, friend = await waiting(books)
    now = await books.clock.now()
    paid = invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH)
    first = await books.apply(paid)
    assert [told.referral_id for told in first.payments] == [referral_id]
    assert await books.apply(paid) == first
    async with books.database.transaction() as transaction:
        await facts.mark_signalled(transaction, paid["id"])
    ((marked,),) = await books.rows("SELECT signalled_at FROM stripe_event WHERE event_id = :id", id=paid["id"])
    assert await books.apply(paid) == News()
    async with books.database.transaction() as transaction:
        await facts.mark_signalled(transaction, paid["id"])
    assert await books.rows("SELECT signalled_at FROM stripe_event WHERE event_id = :id", id=paid["id"]) == [(marked,)]


async def test_an_event_that_was_told_stores_nothing_of_what_it_says_later(books: Books) -> None:
    """A thin event is asked for as it is now: what it says by then, nobody would be told."""
    _, friend = await waiting(books)
    invoice, now = unique("in"), await books.clock.now()
    nothing, more = (
        invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH, invoice_id=invoice, amount_paid=paid)
        for paid in (0, 2900)
    )
    await books.report(nothing)
    before = await books.rows("SELECT * FROM paid_period WHERE invoice_id = :id", id=invoice)
    assert await books.apply({**more, "id": nothing["id"]}) == News()
    assert await books.rows("SELECT * FROM paid_period WHERE invoice_id = :id", id=invoice) == before


async def test_rule_9_an_event_not_marked_names_the_grant_again_that_it_moved(books: Books) -> None:
    """The first delivery may have ended before anybody was told."""
    referrer, friend = await books.subscriber(), await books.someone()
    now = await books.clock.now()
    referral_id = await books.credited(referrer, friend, length=10 * DAY)
    longer = subscription(friend.customer_id, friend.subscription_id, now, now + 20 * DAY)
    first = await books.apply(longer)
    ((moved),) = first.moved
    assert (moved.referral_id, moved.role) == (referral_id, Role.REFEREE)
    assert await books.apply(longer) == first
    await books.report(longer)
    assert await books.apply(longer) == News()


async def test_the_news_of_a_payment_hold_what_a_run_needs_to_be_started_again(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    click = await books.click(referrer, window=timedelta(days=30))
    await books.reserve(click, referrer, friend)
    # Reserved, not attributed yet: the payment is not lost on it.
    await books.put(friend, linked=True)
    (_, news) = await books.report(*await _payment(books, friend))
    ((told),) = news.payments
    assert (told.referral_id, told.referrer_id, told.referee_id) == (
        click.referral_id,
        referrer.account_id,
        friend.account_id,
    )
    assert told.window == click.window


async def _payment(books: Books, friend: Member) -> list[Event]:
    now = await books.clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    return [subscription(*of), invoice_paid(*of)]


async def test_what_concerns_no_referral_tells_nobody(books: Books) -> None:
    referral_id, friend = await waiting(books)
    stranger = await books.someone("stranger")
    await books.put(stranger, linked=True)
    for member in (stranger, await books.someone("unreported")):
        assert await books.report(*await _payment(books, member)) == [News(), News()]
    await books.report(*await _payment(books, friend))
    await books.credit(referral_id)
    # Credited: the next payment is no news.
    assert not any(news.payments for news in await books.report(*await _payment(books, friend)))


async def test_rule_10_every_open_referral_of_an_account_hears_of_its_payment(books: Books) -> None:
    """Which of them is the one is decided by the attribution, not by the payment."""
    first, second, friend = await books.subscriber("first"), await books.subscriber("second"), await books.someone()
    ids = {
        (await books.reserve(await books.click(referrer, at=friend.created_at), referrer, friend)).referral_id
        for referrer in (first, second)
    }
    await books.put(friend, linked=True)
    *_, news = await books.report(*await _payment(books, friend))
    assert {told.referral_id for told in news.payments} == ids


async def test_linking_the_customer_last_is_news_by_either_way(books: Books) -> None:
    for way in ("put", "checkout"):
        referrer, friend = await books.subscriber(), await books.someone()
        referral_id = await books.sign_up(referrer, friend)
        assert await books.report(*await _payment(books, friend)) == [News(), News()]
        if way == "put":
            news = await books.put(friend, linked=True)
        else:
            (news,) = await books.report(checkout_completed(friend.customer_id, friend.account_id))
        assert [told.referral_id for told in news.payments] == [referral_id], way


async def test_rule_18_a_customer_of_another_account_ends_the_referral_by_either_way(books: Books) -> None:
    """No payment of that customer will ever be the friend's, so it would wait for ever."""
    for way in ("put", "checkout"):
        referrer, friend = await books.subscriber(), await books.someone()
        referral_id = await books.sign_up(referrer, friend)
        if way == "put":
            news = await books.put(replace(friend, customer_id=referrer.customer_id), linked=True)
        else:
            (news,) = await books.report(checkout_completed(referrer.customer_id, friend.account_id))
        assert [told.referral_id for told in news.payments] == [referral_id], way
        assert (await books.credit(referral_id)).reason == Refusal.SAME_CUSTOMER.words, way


async def test_attributing_last_is_told_of_the_payment(books: Books) -> None:
    for amount, known in ((2900, True), (0, False)):
        referrer, friend = await books.subscriber(), await books.someone()
        click = await books.click(referrer, at=friend.created_at)
        await books.put(friend, linked=True)
        now = await books.clock.now()
        await books.report(
            invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH, amount_paid=amount)
        )
        reservation = await books.reserve(click, referrer, friend)
        result = await books.attribute(reservation.referral_id)
        assert isinstance(result, AttributionResult)
        assert (result.stage, result.payment_known) == (Stage.SIGNED_UP, known)


async def test_several_customers_in_one_telling_concern_all_their_accounts(books: Books) -> None:
    """As a reconciliation tells it: many payments of many customers at once."""
    pairs = [await waiting(books) for _ in range(3)]
    paid = []
    for _, friend in pairs:
        reduced = reduce_event((await _payment(books, friend))[1])
        (fact,) = reduced.facts
        assert isinstance(fact, PeriodPaid)
        paid.append(fact)
    (news,) = await apply(books, EventFacts("evt_reconciled", "reconciled", START, tuple(paid)))
    assert {told.referral_id for told in news.payments} == {referral_id for referral_id, _ in pairs}


# What is sold, and how it is paid


async def credit_of(books: Books, *told: Event, friend: Member, referral_id: str) -> tuple[str | None, int, str | None]:
    """What a friend's events bring: the plan, the minutes, and what nobody knows."""
    await books.report(*told)
    result = await books.credit(referral_id)
    assert (result.stage is Stage.CREDITED) is (result.plan is not None)
    assert len(await books.lots(friend)) == (result.plan is not None)
    return result.plan, result.minutes, result.needs_attention


async def waiting_with_invoice(books: Books, price_id: str, **invoice: Any) -> tuple[str, Member, Event, datetime]:
    """A referral that waits, and the invoice that its friend pays, of a price with that id."""
    referral_id, friend = await waiting(books)
    now = await books.clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    return referral_id, friend, invoice_paid(*of, plan=price_id.removeprefix("price_"), **invoice), now


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_rule_14_a_price_sold_keeps_its_plan_when_its_lookup_key_goes_to_another(
    books: Books, order: tuple[int, ...]
) -> None:
    """`transfer_lookup_key`: the new price has the key, the old one is told without it, and is still sold."""
    referral_id, friend, invoice, _ = await waiting_with_invoice(books, "price_2026")
    events = [
        price("price_2026", "pro", type_="created", created=START),
        price("price_2026", None, created=START + timedelta(seconds=5)),
        price("price_2027", "pro", type_="created", created=START + timedelta(seconds=5)),
        invoice,
    ]
    told = [events[number] for number in order]
    assert await credit_of(books, *told, friend=friend, referral_id=referral_id) == ("pro", 90, None)


async def test_rule_14_a_price_that_nobody_knows_waits_until_stripe_says_what_it_is(books: Books) -> None:
    referral_id, friend, invoice, now = await waiting_with_invoice(books, "price_new")
    plan, minutes, attention = await credit_of(books, invoice, friend=friend, referral_id=referral_id)
    assert (plan, minutes) == (None, 0)
    assert attention is not None
    assert "price_new" in attention
    known = price("price_new", "power_monthly", created=now)
    assert await credit_of(books, known, friend=friend, referral_id=referral_id) == ("power", 300, None)


async def test_rule_14_a_yearly_price_counts_the_minutes_of_a_month(books: Books) -> None:
    referral_id, friend = await waiting(books)
    now = await books.clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + timedelta(days=365))
    yearly = subscription(*of, plan="yearly", lookup_key="pro_yearly")
    yearly["data"]["object"]["items"]["data"][0]["price"]["recurring"] = {"interval": "year", "interval_count": 1}
    paid = invoice_paid(*of, plan="yearly", amount_paid=29000)
    assert await credit_of(books, yearly, paid, friend=friend, referral_id=referral_id) == ("pro", 90, None)


async def test_rule_14_of_several_items_and_prorations_the_plan_with_most_minutes_counts(books: Books) -> None:
    referral_id, friend = await waiting(books)
    now = await books.clock.now()
    lines = [
        line("power", now, now + MONTH, 7900, proration=True),
        line("seats", now, now + MONTH, 500),
        line("starter", now, now + MONTH, 900),
        line("pro", now, now + MONTH, 2900),
    ]
    paid = invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH, lines=lines, amount_paid=12200)
    prices = [price(f"price_{key}", key, created=now) for key in ("starter", "pro", "power", "seats")]
    assert await credit_of(books, *prices, paid, friend=friend, referral_id=referral_id) == ("pro", 90, None)


@pytest.mark.parametrize(("amount_paid", "minutes"), [(2900, 90), (1, 90), (0, 0)])
async def test_rule_14_money_counts_wherever_it_was_paid_and_a_balance_does_not(
    books: Books, amount_paid: int, minutes: int
) -> None:
    """Paid outside of Stripe in whole, in part beside a balance, or by the balance alone."""
    referral_id, friend, invoice, now = await waiting_with_invoice(books, "price_pro", total=2900)
    invoice["data"]["object"] |= {"amount_paid": amount_paid, "starting_balance": amount_paid - 2900}
    told = [price("price_pro", "pro", created=now), invoice]
    if amount_paid:
        told.append(paid_by(invoice["data"]["object"]["id"], None, now, amount=amount_paid, payment_record="pr_1"))
    plan = "pro" if minutes else None
    assert await credit_of(books, *told, friend=friend, referral_id=referral_id) == (plan, minutes, None)
