"""The ledger when many transactions are under way at once: every credit once, no deadlock, no payment lost.

Who waits for whom is asked of PostgreSQL itself: a transaction "stands" when its step is done but not committed, or
when it waits for a lock. Nothing here depends on how fast the machine is.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, TypeVar

import pytest
from sqlalchemy import text

from billing.events import reduce_event
from ledger import accounts, erasure, facts, referrals, reports
from ledger.accounts import AccountErasedError, Profile, Standing
from ledger.database import Database, Transaction
from ledger.erasure import ErasedSide
from ledger.facts import News
from ledger.referrals import AttributionResult, CreditResult, ExpiryResult, Reservation, derived_id
from program.plans import Plans
from program.referral import Role, Stage
from program.signals import SignalPolicy
from tests.stripe_events import Event, checkout_completed, event, invoice_paid, subscription
from tests.support import HASHES, MONTH, Books, Clock, DatabaseUrls, Member, until

CROWD = 50

Result = TypeVar("Result")
Step = Callable[[Transaction], Awaitable[Result]]


@pytest.fixture
async def crowd(database_urls: DatabaseUrls, clock: Clock) -> AsyncIterator[Database]:
    """The test's database, with a connection for each of a crowd."""
    database = Database(database_urls.app, offset=clock.offset, pool_size=CROWD + 5)
    yield database
    await database.close()


@pytest.fixture
async def books(crowd: Database, plans: Plans, clock: Clock) -> Books:
    return Books(crowd, plans, clock)


class Actor(Generic[Result]):
    """Someone who does one step after the other, each in a transaction, and holds the last one open."""

    def __init__(self, database: Database, *steps: Step[Result]) -> None:
        self._database = database
        self._steps = steps
        self._may_commit = asyncio.Event()
        self._held = asyncio.Event()
        self._pid = 0
        self._task: asyncio.Task[list[Result]] | None = None

    async def _act(self) -> list[Result]:
        results: list[Result] = []
        for number, step in enumerate(self._steps, start=1):
            async with self._database.transaction() as transaction:
                self._pid = (await transaction.execute(text("SELECT pg_backend_pid()"))).scalar_one()
                results.append(await step(transaction))
                if number == len(self._steps):
                    self._held.set()
                    await self._may_commit.wait()
        return results

    async def begin(self) -> None:
        """Begin, and come back once this one stands: at its last step's end, or at a lock that another holds."""
        self._task = asyncio.create_task(self._act())
        await self.stands()

    async def stands(self) -> None:
        assert self._task is not None
        held = asyncio.create_task(self._held.wait())
        async with asyncio.timeout(20):
            # A step that comes to its end says so at once; one that waits for a lock has to be looked after.
            while not (await asyncio.wait({self._task, held}, timeout=0.005, return_when=asyncio.FIRST_COMPLETED))[0]:
                if await self.waits():
                    break
        held.cancel()

    async def waits(self) -> bool:
        """Whether this one waits for a lock that another holds."""
        async with self._database.transaction() as transaction:
            return bool(
                (await transaction.execute(text("SELECT pg_blocking_pids(:pid) <> '{}'"), {"pid": self._pid})).scalar()
            )

    def release(self) -> None:
        """Allow this one to commit, as soon as its step is done."""
        self._may_commit.set()

    async def result(self) -> list[Result]:
        """What its steps gave, once it has committed."""
        assert self._task is not None
        self.release()
        async with asyncio.timeout(20):
            return await self._task


def holding(statement: str, **parameters: object) -> Step[None]:
    """A step that takes a lock and does nothing else."""

    async def hold(transaction: Transaction) -> None:
        await transaction.execute(text(statement), parameters)

    return hold


HOLD_ACCOUNT = "SELECT 1 FROM account WHERE account_id = :id FOR UPDATE"


async def all_at_once(database: Database, account_id: str, steps: Sequence[Step[Result]]) -> list[Result]:
    """Let all steps begin, each in a transaction of its own, and go on together once every one waits for an account."""
    waiting = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
    async with database.transaction() as watcher:

        async def who_waits() -> int:
            return int((await watcher.execute(text(waiting))).scalar_one())

        async with database.transaction() as holder:
            await holder.execute(text(HOLD_ACCOUNT), {"id": account_id})
            tasks = [asyncio.create_task(in_own(database, step)) for step in steps]
            await until(who_waits, lambda number: number == len(steps))
        async with asyncio.timeout(20):
            return await asyncio.gather(*tasks)


async def in_own(database: Database, step: Step[Result]) -> Result:
    async with database.transaction() as transaction:
        return await step(transaction)


# Fifty at once


async def test_rules_6_7_and_12_fifty_at_once_do_each_step_of_a_referral_once(
    books: Books, crowd: Database, clock: Clock
) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    reservation = await books.reserve(await books.click(referrer), referrer, friend)
    referral_id = reservation.referral_id
    await books.put(friend, linked=True)
    now = await clock.now()
    await books.report(subscription(friend.customer_id, friend.subscription_id, now, now + MONTH))
    paid = reduce_event(invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH))

    async def attribute(transaction: Transaction) -> AttributionResult:
        return await referrals.attribute(transaction, referral_id)

    async def apply(transaction: Transaction) -> News:
        return await facts.apply_event(transaction, paid, books.plans, HASHES)

    async def credit(transaction: Transaction) -> CreditResult:
        return await referrals.credit_both(transaction, referral_id, books.plans, SignalPolicy())

    async def expire(transaction: Transaction) -> ExpiryResult:
        return await referrals.expire(transaction, referral_id, books.plans)

    attributions = await all_at_once(crowd, friend.account_id, [attribute] * CROWD)
    assert all(result == attributions[0] for result in attributions)
    assert attributions[0].stage is Stage.SIGNED_UP
    assert (await books.summary(referrer)).invited == 1

    # One event, delivered fifty times: stored once, and each delivery names the referral, for none is marked yet.
    news = await all_at_once(crowd, friend.account_id, [apply] * CROWD)
    assert {tuple(waiting.referral_id for waiting in each.payments) for each in news} == {(referral_id,)}
    assert len(await books.rows("SELECT 1 FROM paid_period WHERE customer_id = :id", id=friend.customer_id)) == 1
    assert len(await books.rows("SELECT 1 FROM stripe_event WHERE event_id = :id", id=paid.event_id)) == 1

    credits_ = await all_at_once(crowd, friend.account_id, [credit] * CROWD)
    assert all(result == credits_[0] for result in credits_)
    assert (credits_[0].stage, credits_[0].minutes) == (Stage.CREDITED, 90)
    lots = await books.rows("SELECT role, minutes, remaining FROM grant_lot ORDER BY role")
    assert lots == [("referee", 90, 90), ("referrer", 90, 90)]
    assert await books.rows("SELECT kind, delta FROM entry") == [("credit", 90), ("credit", 90)]
    assert (await books.summary(referrer)).subscribed == 1
    assert [(await books.summary(member)).bonus_minutes_earned for member in (referrer, friend)] == [90, 90]

    clock.advance(timedelta(days=31))
    expiries = await all_at_once(crowd, friend.account_id, [expire] * CROWD)
    assert all(result == expiries[0] for result in expiries)
    assert expiries[0].expired_minutes == {Role.REFERRER: 90, Role.REFEREE: 90}
    assert await books.rows("SELECT delta FROM entry WHERE kind = 'expiry'") == [(-90,), (-90,)]
    stages = [step.stage for step in await books.story(referral_id)]
    assert stages == [Stage.SIGNED_UP, Stage.CREDITED, Stage.SETTLED]


async def test_rule_1_simultaneous_requests_for_a_link_get_the_same(books: Books, crowd: Database) -> None:
    referrer = await books.subscriber()

    async def give(transaction: Transaction) -> accounts.Link:
        return await accounts.give_link(transaction, referrer.account_id, "2026-01", books.plans)

    links = await all_at_once(crowd, referrer.account_id, [give] * 10)
    assert len(set(links)) == 1
    assert await books.rows("SELECT account_id FROM referral_link") == [(referrer.account_id,)]


async def test_rule_16_simultaneous_signups_with_one_token_get_a_referral_for_each_account(books: Books) -> None:
    referrer, first, second = await books.subscriber(), await books.someone(), await books.someone()
    click = await books.click(referrer)
    signups = [first, second] * 5
    reservations = await asyncio.gather(*(books.reserve(click, referrer, friend) for friend in signups))
    ids = [{r.referral_id for r in reservations[0::2]}, {r.referral_id for r in reservations[1::2]}]
    assert [len(of_account) for of_account in ids] == [1, 1]
    assert {click.referral_id} in ids
    assert ids[0] != ids[1]
    assert len(await books.rows("SELECT 1 FROM referral")) == 2


@pytest.mark.parametrize("whose", ["another's", "the same account's"])
async def test_rule_16_a_signup_under_way_makes_another_one_with_its_token_wait(
    books: Books, crowd: Database, whose: str
) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    other = await books.someone() if whose == "another's" else friend
    click = await books.click(referrer)

    def signing_up(who: Member) -> Step[Reservation]:
        return lambda transaction: books.reserve_in(transaction, click, referrer, who)

    first, second = Actor(crowd, signing_up(friend)), Actor(crowd, signing_up(other))
    await first.begin()
    await second.begin()
    assert await second.waits()
    [of_friend], [of_other] = await first.result(), await second.result()
    assert of_friend.referral_id == click.referral_id
    own = click.referral_id if other is friend else derived_id(click.referral_id, other.account_id)
    assert of_other.referral_id == own
    expected = {(click.referral_id, friend.account_id), (own, other.account_id)}
    assert set(await books.rows("SELECT referral_id, referee_id FROM referral")) == expected


async def test_rule_16_a_signup_that_is_undone_leaves_the_token_to_whoever_waited(
    books: Books, crowd: Database
) -> None:
    referrer, friend, other = await books.subscriber(), await books.someone(), await books.someone()
    click = await books.click(referrer)
    waiting = Actor(crowd, lambda transaction: books.reserve_in(transaction, click, referrer, other))
    async with crowd.transaction() as undone:
        assert (await books.reserve_in(undone, click, referrer, friend)).referral_id == click.referral_id
        await waiting.begin()
        assert await waiting.waits()
        await undone.rollback()
    [reservation] = await waiting.result()
    assert reservation.referral_id == click.referral_id
    assert await books.rows("SELECT referee_id FROM referral") == [(other.account_id,)]


async def test_simultaneous_reports_of_a_new_account_make_one(books: Books) -> None:
    friend = await books.someone()
    await asyncio.gather(*(books.put(friend, linked=number % 2 == 0) for number in range(10)))
    assert await books.rows("SELECT account_id FROM account") == [(friend.account_id,)]
    assert await books.rows("SELECT account_id FROM customer") == [(friend.account_id,)]


def _reporting(books: Books, member: Member, customer: str | None, **what: Any) -> Step[Standing]:
    async def report(transaction: Transaction) -> Standing:
        profile = replace(Profile(member.account_id, member.email, member.created_at, customer), **what)
        _, standing = await reports.account(transaction, profile, HASHES, books.plans)
        return standing

    return report


async def test_of_two_first_reports_of_an_account_the_later_one_knows_what_the_earlier_one_said(
    books: Books, crowd: Database
) -> None:
    member = await books.someone()
    await books.pay(member)
    first = Actor(crowd, _reporting(books, member, member.customer_id, first_name="Ada"))
    # Not even the e-mail is the same: all that they share is the account, which nobody has seen yet.
    second = Actor(crowd, _reporting(books, member, None, email="another@example.com"))
    await first.begin()
    await second.begin()
    assert await second.waits()
    assert [(standing.paid, standing.plan) for standing in await first.result() + await second.result()] == [
        (True, "pro"),
        (True, "pro"),
    ]
    assert await books.rows("SELECT account_id, first_name FROM account") == [(member.account_id, "Ada")]
    assert len(await books.rows("SELECT 1 FROM identity WHERE kind = 'email'")) == 2


async def test_a_checkout_under_way_makes_the_first_report_of_its_account_wait(books: Books, crowd: Database) -> None:
    member = await books.someone()
    await books.pay(member)
    checkout = Actor(crowd, _applying(books, checkout_completed(member.customer_id, member.account_id)))
    report = Actor(crowd, _reporting(books, member, None))
    await checkout.begin()
    await report.begin()
    assert await report.waits(), "the customer is named by the checkout alone: they share the account"
    await checkout.result()
    assert [standing.paid for standing in await report.result()] == [True]


@pytest.mark.parametrize("first", ["erasing", "report"])
async def test_rule_23_a_report_that_links_another_customer_while_the_account_is_erased_leaves_none_in_the_clear(
    books: Books, crowd: Database, first: str
) -> None:
    member = await books.someone()
    await books.put(member, linked=True)
    erasing: Actor[list[ErasedSide]] = Actor(crowd, lambda tx: erasure.erase(tx, member.account_id, HASHES))
    report = Actor(crowd, _reporting(books, member, "cus_another"))
    if first == "erasing":
        await erasing.begin()
        await report.begin()
        assert await report.waits()
        await erasing.result()
        with pytest.raises(AccountErasedError):
            await report.result()
    else:
        await report.begin()
        await erasing.begin()
        assert await erasing.waits()
        await report.result()
        await erasing.result()
    hidden = {member.customer_id} if first == "erasing" else {member.customer_id, "cus_another"}
    known = {(HASHES.pseudonym(customer_id), member.account_id) for customer_id in hidden}
    assert set(await books.rows("SELECT customer_id, account_id FROM customer")) == known


@pytest.mark.parametrize("first", ["erasing", "report"])
async def test_rules_18_and_23_a_customer_reported_for_another_account_while_its_own_is_erased_stays_hidden(
    books: Books, crowd: Database, first: str
) -> None:
    member, other = await books.someone(), await books.someone()
    await books.put(member, linked=True)
    await books.pay(member)
    erasing: Actor[object] = Actor(crowd, lambda tx: erasure.erase(tx, member.account_id, HASHES))
    report: Actor[object] = Actor(crowd, _reporting(books, other, member.customer_id))
    one, two = (erasing, report) if first == "erasing" else (report, erasing)
    await one.begin()
    await two.begin()
    assert await two.waits()
    await one.result()
    await two.result()
    known = await books.rows("SELECT customer_id, account_id FROM customer")
    assert known == [(HASHES.pseudonym(member.customer_id), member.account_id)]
    async with crowd.transaction() as transaction:
        assert not (await accounts.standing_seen(transaction, other.account_id, books.plans)).paid


# Different referrals of one account, and circles


async def test_rule_5_simultaneous_credits_of_one_referrer_all_count(books: Books, crowd: Database) -> None:
    referrer = await books.subscriber()
    friends = [await books.someone() for _ in range(10)]
    ids = await asyncio.gather(*(books.sign_up(referrer, friend) for friend in friends))
    await asyncio.gather(*(books.put(friend, linked=True) for friend in friends))
    await asyncio.gather(*(books.pay(friend) for friend in friends))

    def credit(referral_id: str) -> Step[CreditResult]:
        return lambda transaction: referrals.credit_both(transaction, referral_id, books.plans, SignalPolicy())

    results = await all_at_once(crowd, referrer.account_id, [credit(referral_id) for referral_id in ids])
    assert Counter(result.stage for result in results) == {Stage.CREDITED: 10}
    summary = await books.summary(referrer)
    assert (summary.invited, summary.subscribed, summary.bonus_minutes_earned) == (10, 10, 10 * 90)
    assert summary.bonus_minutes_available == 10 * 90


async def test_two_members_who_refer_each_other_do_not_wait_for_each_other(books: Books, crowd: Database) -> None:
    one, two = await books.subscriber("one"), await books.subscriber("two")
    clicks = {"two": await books.click(one), "one": await books.click(two)}
    async with asyncio.timeout(10), crowd.transaction() as first, crowd.transaction() as second:
        # Each signup holds its own account, and names the other's.
        await books.put_in(first, two)
        await books.put_in(second, one)
        of_two = await referrals.reserve(first, clicks["two"], one.account_id, two.account_id)
        of_one = await referrals.reserve(second, clicks["one"], two.account_id, one.account_id)
    both = [await books.attribute(reservation.referral_id) for reservation in (of_one, of_two)]
    assert [result.stage for result in both] == [Stage.REFUSED, Stage.REFUSED]


@pytest.mark.parametrize("held_first", ["the lower id", "the higher id"])
async def test_both_accounts_are_locked_in_the_order_of_their_ids(
    books: Books, crowd: Database, held_first: str
) -> None:
    referrer, friend = await books.subscriber("z"), await books.someone("a")
    if held_first == "the lower id":
        referrer, friend = await books.subscriber("a"), await books.someone("z")
    referral_id = await books.sign_up(referrer, friend)
    lower, higher = sorted([referrer.account_id, friend.account_id])
    holder = Actor(crowd, holding(HOLD_ACCOUNT, id=lower))
    await holder.begin()
    credit: Actor[CreditResult] = Actor(
        crowd, lambda tx: referrals.credit_both(tx, referral_id, books.plans, SignalPolicy())
    )
    await credit.begin()
    assert await credit.waits()
    # It waits for the lower id, so it cannot hold the higher one.
    async with asyncio.timeout(10), crowd.transaction() as transaction:
        await transaction.execute(text(HOLD_ACCOUNT), {"id": higher})
    await holder.result()
    await credit.result()


async def test_rule_23_erasing_a_friend_not_decided_yet_locks_the_referrer_whose_dashboard_shows_it(
    books: Books, crowd: Database
) -> None:
    # The dashboards of several referrers change with it. Without their accounts, two erasings could do so crosswise.
    referrer, friend = await books.subscriber("z"), await books.someone("a")
    await books.reserve(await books.click(referrer), referrer, friend)
    holder = Actor(crowd, holding(HOLD_ACCOUNT, id=referrer.account_id))
    await holder.begin()
    erasing: Actor[list[ErasedSide]] = Actor(crowd, lambda tx: erasure.erase(tx, friend.account_id, HASHES))
    await erasing.begin()
    assert await erasing.waits()
    await holder.result()
    assert await erasing.result()


async def test_rule_18_a_customer_shared_with_a_referrer_makes_no_deadlock(books: Books, crowd: Database) -> None:
    referrer, friend = await books.subscriber("a"), await books.someone("z")
    reservation = await books.reserve(await books.click(referrer), referrer, friend)
    shared = Profile(friend.account_id, friend.email, friend.created_at, referrer.customer_id)

    async def put(transaction: Transaction) -> News:
        await accounts.put(transaction, shared, HASHES)
        return await facts.news_of_account(transaction, friend.account_id, books.plans)

    linking = Actor(crowd, put)
    await linking.begin()
    attribution = Actor(crowd, lambda tx: referrals.attribute(tx, reservation.referral_id))
    await attribution.begin()
    assert await attribution.waits()
    paying = Actor(crowd, _applying(books, await _payment_of(books, referrer)))
    await paying.begin()
    assert await paying.waits()
    for actor in (linking, attribution, paying):
        actor.release()
    assert (await attribution.result())[0].stage is Stage.REFUSED
    await linking.result()
    await paying.result()


async def test_a_ring_of_members_who_refer_each_other_under_load_has_no_deadlock(books: Books) -> None:
    """Everyone is a referrer and a referee at once, and everything happens to all of them at the same time."""
    ring = [await books.someone(f"member{number}") for number in range(6)]
    pairs = list(zip(ring, ring[1:] + ring[:1], strict=True))
    for member in ring:
        await books.put(member, linked=True)
        await books.pay(member)
    clicked_at = await books.clock.now() - timedelta(minutes=1)
    clicks = [await books.click(referrer, at=clicked_at) for referrer, _ in pairs]
    reserved = await asyncio.gather(
        *(books.reserve(click, referrer, friend) for click, (referrer, friend) in zip(clicks, pairs, strict=True))
    )
    ids = [reservation.referral_id for reservation in reserved]

    async def everything(number: int) -> None:
        referrer, friend = pairs[number]
        steps: list[Callable[[], Awaitable[object]]] = [
            lambda: books.attribute(ids[number]),
            lambda: books.credit(ids[number]),
            lambda: books.put(friend, linked=True),
            lambda: books.reserve(clicks[number], referrer, friend),
            lambda: books.pay(friend),
            lambda: books.expire(ids[number]),
        ]
        random.Random(number).shuffle(steps)  # noqa: S311 - the same order each time
        await asyncio.gather(*(step() for step in steps))

    for _ in range(2):
        await asyncio.gather(*(everything(number) for number in range(len(pairs))))
    results = await asyncio.gather(*(books.credit(referral_id) for referral_id in ids))
    assert {result.stage for result in results} == {Stage.CREDITED}
    for member in ring:
        summary = await books.summary(member)
        assert (summary.invited, summary.subscribed, summary.bonus_minutes_earned) == (1, 1, 180)


# Customer linked, signup attributed, payment reported: at least one of them knows of the payment


async def _payment_of(books: Books, member: Member) -> Event:
    now = await books.clock.now()
    return invoice_paid(member.customer_id, member.subscription_id, now, now + MONTH)


def _applying(books: Books, document: Event) -> Step[News]:
    reduced = reduce_event(document)
    return lambda transaction: facts.apply_event(transaction, reduced, books.plans, HASHES)


def _crediting(books: Books, referral_id: str) -> Step[CreditResult]:
    return lambda transaction: referrals.credit_both(transaction, referral_id, books.plans, SignalPolicy())


Known = News | AttributionResult | None


class Trio:
    """A friend with a signup to attribute, a customer to link and a payment to report, in transactions of their own."""

    def __init__(self, books: Books, referrer: Member, friend: Member, click: referrals.ClickedLink) -> None:
        self._books = books
        self._referrer = referrer
        self._friend = friend
        self._click = click

    @classmethod
    async def of(cls, books: Books, referrer: Member, account: str) -> "Trio":
        friend = await books.someone()
        trio = cls(books, referrer, friend, await books.click(referrer, at=friend.created_at))
        if account == "known":
            await books.reserve(trio._click, referrer, friend)
        return trio

    async def report_customer(self) -> None:
        """Let something be known of the customer, which belongs to nobody yet."""
        now = await self._books.clock.now()
        await self._books.report(
            subscription(self._friend.customer_id, self._friend.subscription_id, now, now + MONTH, status="trialing")
        )

    def signup(self) -> tuple[Step[Known], ...]:
        async def reserve(transaction: Transaction) -> None:
            await self._books.reserve_in(transaction, self._click, self._referrer, self._friend)

        async def attribute(transaction: Transaction) -> Known:
            return await referrals.attribute(transaction, self._click.referral_id)

        return reserve, attribute

    def link(self, way: str) -> tuple[Step[Known], ...]:
        if way == "checkout":
            return (_applying(self._books, checkout_completed(self._friend.customer_id, self._friend.account_id)),)
        return (lambda transaction: self._books.put_in(transaction, self._friend, linked=True),)

    async def payment(self) -> tuple[Step[Known], ...]:
        return (_applying(self._books, await _payment_of(self._books, self._friend)),)

    async def actors(self, database: Database, way: str) -> dict[str, Actor[Known]]:
        return {
            "link": Actor(database, *self.link(way)),
            "signup": Actor(database, *self.signup()),
            "payment": Actor(database, *await self.payment()),
        }

    def blockers(self, database: Database) -> dict[str, Actor[None]]:
        customer = "SELECT 1 FROM customer WHERE customer_id = :id FOR UPDATE"
        return {
            "nobody": Actor(database, holding("SELECT 1")),
            "the customer": Actor(database, holding(customer, id=self._friend.customer_id)),
            "the account": Actor(database, holding(HOLD_ACCOUNT, id=self._friend.account_id)),
        }

    async def is_credited_by(self, results: list[Known]) -> bool:
        """Whether somebody learned of the payment, and the credit that follows from it is made."""
        known = any(
            (isinstance(result, AttributionResult) and result.payment_known)
            or (
                isinstance(result, News)
                and self._click.referral_id in [waiting.referral_id for waiting in result.payments]
            )
            for result in results
        )
        return known and (await self._books.credit(self._click.referral_id)).stage is Stage.CREDITED


ORDERS = list(itertools.permutations(["link", "signup", "payment"]))


@pytest.mark.parametrize("account", ["known", "new"])
@pytest.mark.parametrize("way", ["checkout", "put"])
async def test_no_payment_is_lost_in_any_order_one_after_the_other(
    books: Books, crowd: Database, way: str, account: str
) -> None:
    referrer = await books.subscriber()
    for order in ORDERS:
        trio = await Trio.of(books, referrer, account)
        actors = await trio.actors(crowd, way)
        results: list[Known] = []
        for name in order:
            await actors[name].begin()
            results += await actors[name].result()
        assert await trio.is_credited_by(results), f"lost: {order}"


@pytest.mark.parametrize("account", ["known", "new"])
@pytest.mark.parametrize("way", ["checkout", "put"])
async def test_no_payment_is_lost_with_transactions_held_open_in_any_order(
    books: Books, crowd: Database, way: str, account: str
) -> None:
    """They begin in each order, the first committed at once or held open too, and commit in that order or backwards."""
    referrer = await books.subscriber()
    cases = [("held", "forwards", "new"), ("held", "backwards", "known"), ("committed", "forwards", "known")]
    for begun, (first, commits, customer) in itertools.product(ORDERS, cases):
        trio = await Trio.of(books, referrer, account)
        if customer == "known":
            await trio.report_customer()
        actors = await trio.actors(crowd, way)
        for name in begun:
            await actors[name].begin()
            if first == "committed":
                await actors[begun[0]].result()
        for name in begun if commits == "forwards" else begun[::-1]:
            actors[name].release()
            await asyncio.gather(*(actor.stands() for actor in actors.values()))
        results = [known for actor in actors.values() for known in await actor.result()]
        assert await trio.is_credited_by(results), f"lost: {begun}, {first}, {commits}, customer {customer}"


@pytest.mark.parametrize("account", ["known", "new"])
@pytest.mark.parametrize("way", ["checkout", "put"])
@pytest.mark.parametrize("blocked_by", ["the customer", "the account"])
async def test_no_payment_is_lost_with_all_stopped_halfway(
    books: Books, crowd: Database, way: str, account: str, blocked_by: str
) -> None:
    """All three are stopped at a lock halfway through, queue up for it in each order, and go on together."""
    referrer = await books.subscriber()
    for order in ORDERS:
        trio = await Trio.of(books, referrer, account)
        await trio.report_customer()
        blocker = trio.blockers(crowd)[blocked_by]
        await blocker.begin()
        actors = await trio.actors(crowd, way)
        for name in order:
            actors[name].release()
            await actors[name].begin()
        await blocker.result()
        results: list[Known] = []
        for actor in actors.values():
            results += await actor.result()
        assert await trio.is_credited_by(results), f"lost: {order}"


async def test_no_payment_is_lost_when_all_begin_together(books: Books, crowd: Database) -> None:
    referrer = await books.subscriber()
    cases = list(itertools.product(["checkout", "put"], ["known", "new"])) * 6

    async def race(number: int, way: str, account: str) -> bool:
        trio = await Trio.of(books, referrer, account)
        actors = await trio.actors(crowd, way)
        names = list(ORDERS[number % len(ORDERS)])
        for actor in actors.values():
            actor.release()
        await asyncio.gather(*(actors[name].begin() for name in names))
        results = [await actor.result() for actor in actors.values()]
        return await trio.is_credited_by([known for of_actor in results for known in of_actor])

    for number in range(0, len(cases), 8):
        batch = [race(number + at, *case) for at, case in enumerate(cases[number : number + 8])]
        assert all(await asyncio.gather(*batch))


async def test_a_payment_under_way_makes_the_attribution_wait_and_the_other_way_round(
    books: Books, crowd: Database
) -> None:
    referrer = await books.subscriber()
    for first in ("payment", "signup"):
        trio = await Trio.of(books, referrer, "known")
        await in_own(crowd, trio.link("put")[0])
        actors = await trio.actors(crowd, "put")
        second = "signup" if first == "payment" else "payment"
        await actors[first].begin()
        assert not await actors[first].waits()
        await actors[second].begin()
        assert await actors[second].waits()
        results = await actors[first].result() + await actors[second].result()
        assert await trio.is_credited_by(results)


async def test_rule_9_a_period_under_way_while_the_credit_is_made_moves_its_grant(
    books: Books, crowd: Database
) -> None:
    """Whichever of them commits first, the grant ends with the longer period."""
    referrer = await books.subscriber(started=timedelta(days=20))
    now = await books.clock.now()
    for first in ("credit", "period"):
        friend = await books.someone()
        referral_id = await books.sign_up(referrer, friend)
        await books.put(friend, linked=True)
        begun, end = now - timedelta(days=10), now + timedelta(days=10)
        await books.report(
            subscription(friend.customer_id, friend.subscription_id, begun, end),
            invoice_paid(friend.customer_id, friend.subscription_id, begun, end, paid_at=await books.clock.now()),
        )
        longer = subscription(
            friend.customer_id,
            friend.subscription_id,
            now - timedelta(days=10),
            now + timedelta(days=25),
            type_="customer.subscription.updated",
        )
        actors: dict[str, Actor[object]] = {
            "credit": Actor(crowd, _crediting(books, referral_id)),
            "period": Actor(crowd, _applying(books, longer)),
        }
        await actors[first].begin()
        second = actors["period" if first == "credit" else "credit"]
        await second.begin()
        assert await second.waits()
        await actors[first].result()
        await second.result()
        (lot,) = await books.lots(friend)
        assert int(lot.expires_at.timestamp()) == int((now + timedelta(days=25)).timestamp())


async def test_a_price_seen_again_waits_for_nobody(books: Books, crowd: Database) -> None:
    """Every sale of a plan reports its price: webhooks must not queue up behind each other for it."""
    one, two = await books.subscriber("one"), await books.subscriber("two")
    now = await books.clock.now()

    def renewed(member: Member, after: int) -> Event:
        document = subscription(
            member.customer_id, member.subscription_id, now, now + MONTH, created=now + timedelta(seconds=after)
        )
        return event("customer.subscription.updated", document["data"]["object"], now + timedelta(seconds=after))

    first, second = (Actor(crowd, _applying(books, renewed(member, 5))) for member in (one, two))
    await first.begin()
    await second.begin()
    assert not await second.waits()
    await second.result()
    await first.result()
