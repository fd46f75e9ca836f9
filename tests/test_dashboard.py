"""The member's dashboard: its numbers are the summary's (rule 12), and cost the same however much there is."""

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial

import psycopg
import pytest
from psycopg import errors

from devstack.postgres import EmbeddedPostgres
from ledger import accounts, portal_sessions, usage
from ledger.dashboard import BONUSES_SHOWN, ChannelCount, Dashboard, MonthCount, dashboard
from ledger.database import Database, Transaction
from ledger.migrate import migrate
from program.doubts import Action
from program.months import MONTHS_SHOWN, last_months
from program.plans import Plans
from program.referral import Role, Stage
from tests.stripe_events import invoice_paid, subscription
from tests.support import MONTH, Books, Clock, DatabaseUrls, Member, copied_database
from tests.test_migrations import plain
from tests.test_reads import give_history, pages_touched

CHANNELS_APART = 40


@pytest.fixture
def books(database: Database, plans: Plans, clock: Clock) -> Books:
    return Books(database, plans, clock)


async def seen(books: Books, member: Member) -> Dashboard:
    async with books.database.snapshot() as transaction:
        return await dashboard(transaction, member.account_id, books.plans)


async def click(books: Books, code: str, channel: str, times: int = 1) -> None:
    for _ in range(times):
        async with books.database.transaction() as transaction:
            await accounts.link_followed(transaction, code, channel, (await books.clock.now()).date())


# Months


def test_months_are_whole_and_reach_over_the_turn_of_a_year() -> None:
    assert last_months(datetime(2026, 2, 28, 23, 59, tzinfo=UTC), 4) == (
        date(2025, 11, 1),
        date(2025, 12, 1),
        date(2026, 1, 1),
        date(2026, 2, 1),
    )
    assert last_months(datetime(2026, 12, 1, tzinfo=UTC), 1) == (date(2026, 12, 1),)
    assert len(last_months(datetime(2026, 1, 1, tzinfo=UTC))) == MONTHS_SHOWN


# What is shown


async def test_rule_12_the_numbers_are_the_summarys_whatever_becomes_of_the_referrals(books: Books) -> None:
    referrer = await books.subscriber(started=timedelta(days=1))
    friends = [await books.someone() for _ in range(5)]
    credited, voided = [await books.credited(referrer, friend) for friend in friends[:2]]
    held = await books.held(referrer, friends[2])
    await books.sign_up(referrer, friends[3])
    await books.sign_up(referrer, friends[4])
    async with books.database.transaction() as transaction:
        await usage.spend(transaction, referrer.account_id, "call-1", 100)
    code = (await books.link(referrer)).code
    await click(books, code, "whatsapp", 2)
    await click(books, code, "qr")

    async def agree() -> Dashboard:
        shown, summary = await seen(books, referrer), await books.summary(referrer)
        assert (shown.clicks, shown.invited, shown.subscribed) == (summary.clicks, summary.invited, summary.subscribed)
        assert shown.minutes_earned == summary.bonus_minutes_earned
        assert (shown.available, shown.next_expiry) == (summary.bonus_minutes_available, summary.next_expiry)
        assert sum(channel.clicks for channel in shown.channels) == shown.clicks
        assert sum(channel.signups for channel in shown.channels) == shown.invited
        assert sum(month.invited for month in shown.months) == shown.invited
        assert sum(month.subscribed for month in shown.months) == shown.subscribed
        assert sum(month.minutes for month in shown.months) == shown.minutes_earned
        assert sum(bonus.remaining for bonus in shown.bonuses) == shown.available
        return shown

    shown = await agree()
    assert (shown.paid, shown.code) == (True, code)
    assert (shown.clicks, shown.invited, shown.subscribed, shown.minutes_earned) == (3, 5, 2, 180)
    assert shown.channels == (
        ChannelCount("link", 0, 5),
        ChannelCount("whatsapp", 2, 0),
        ChannelCount("qr", 1, 0),
    )
    # The first bonus is used up, so that one is left.
    (bonus,) = shown.bonuses
    assert (bonus.minutes, bonus.remaining, bonus.role, shown.more_bonuses) == (90, 80, Role.REFERRER, 0)
    assert bonus.expires_at == shown.next_expiry

    left_of_it = bonus.grant_id.rpartition("-")[0]
    used_up = credited if left_of_it == voided else voided
    await books.decide(used_up, Action.VOID)
    assert (await agree()).minutes_earned == 180
    await books.decide(left_of_it, Action.VOID)
    assert (await agree()).minutes_earned == 100
    await books.decide(held, Action.REJECT)
    assert (await agree()).invited == 4
    await books.erase(friends[4])
    assert (await agree()).invited == 3
    friend = await seen(books, friends[0])
    assert (friend.code, friend.channels, friend.invited) == (None, (), 0)
    assert sum(month.minutes for month in friend.months) == friend.minutes_earned == 0


async def test_a_month_is_of_utc_and_those_without_anything_are_shown_as_well(books: Books) -> None:
    referrer = await books.subscriber(length=timedelta(days=300))
    began = last_months(await books.clock.now())
    await books.sign_up(referrer, await books.someone())
    books.clock.advance(timedelta(days=93))
    months = last_months(await books.clock.now())
    await books.credited(referrer, await books.someone())
    shown = await seen(books, referrer)
    assert [month.month for month in shown.months] == list(months)
    nothing = [month for month in months if month not in (began[-1], months[-1])]
    assert set(shown.months) == {
        MonthCount(began[-1], 1, 0, 0),
        MonthCount(months[-1], 1, 1, 90),
        *(MonthCount(month, 0, 0, 0) for month in nothing),
    }
    # What is longer ago is not looked back at.
    books.clock.advance(timedelta(days=200))
    assert sum(month.invited for month in (await seen(books, referrer)).months) == 0
    assert (await books.summary(referrer)).invited == 2


async def test_further_bonuses_are_counted(books: Books, owner: psycopg.Connection) -> None:
    referrer = await books.subscriber(started=timedelta(days=1))
    first = await books.credited(referrer, await books.someone())
    plant_open_bonuses(owner, referrer, (await books.link(referrer)).code, BONUSES_SHOWN + 7)
    shown = await seen(books, referrer)
    assert len(shown.bonuses) == BONUSES_SHOWN
    assert shown.more_bonuses == 8
    ends = [bonus.expires_at for bonus in shown.bonuses]
    assert ends == sorted(ends)
    assert first not in {bonus.grant_id.rpartition("-")[0] for bonus in shown.bonuses}


async def test_channels_past_forty_are_counted_together(books: Books) -> None:
    referrer = await books.subscriber()
    code = (await books.link(referrer)).code
    for number in range(CHANNELS_APART + 5):
        await click(books, code, f"channel-{number:02}", 2)
    await books.sign_up(referrer, await books.someone())
    shown = await seen(books, referrer)
    assert len(shown.channels) == CHANNELS_APART + 1
    # By `link`, which was the forty-sixth way here.
    assert shown.channels[0] == ChannelCount("other", 10, 1)
    assert shown.clicks == 2 * (CHANNELS_APART + 5)


# News


async def versions(books: Books, *members: Member) -> list[str]:
    return [(await seen(books, member)).version for member in members]


async def test_whatever_is_shown_changes_the_version_and_nothing_else_does(books: Books) -> None:
    referrer, friend = await books.subscriber(started=timedelta(days=1)), await books.someone()
    other = await books.subscriber("other")
    await books.put(friend, linked=True)
    known = await versions(books, referrer, friend, other)

    async def after(step: Awaitable[object], *changes: int) -> None:
        nonlocal known
        await step
        now = await versions(books, referrer, friend, other)
        assert tuple(number for number in range(3) if now[number] != known[number]) == changes
        known = now

    async def use(member: Member, minutes: int) -> None:
        async with books.database.transaction() as transaction:
            await usage.spend(transaction, member.account_id, f"call-{minutes}", minutes)

    code = (await books.link(referrer)).code
    await after(books.link(referrer), 0)
    await after(books.link(referrer))
    await after(click(books, code, "qr"), 0)
    reservation = await books.reserve(await books.click(referrer), referrer, friend)
    await after(books.clock.now())
    await after(books.attribute(reservation.referral_id), 0)
    await after(books.attribute(reservation.referral_id))
    # The friend's own standing; what it brings the referrer is seen when it is credited.
    await after(books.pay(friend), 1)
    await after(books.credit(reservation.referral_id), 0, 1)
    await after(books.credit(reservation.referral_id))
    await after(use(referrer, 7), 0)
    await after(use(friend, 8), 1)
    await after(books.put(friend))
    # Rule 9: a date that moves takes the friend's bonus along.
    books.clock.advance(timedelta(days=28))
    await after(books.pay(friend, start=await books.clock.now(), length=MONTH), 1)
    await after(books.decide(reservation.referral_id, Action.VOID), 0, 1)


async def test_rule_1_each_fact_that_a_standing_follows_from_changes_the_version(books: Books) -> None:
    member = await books.someone()
    await books.put(member, linked=True)
    now = await books.clock.now()
    seen_until = partial(subscription, member.customer_id, member.subscription_id, now)
    known = await versions(books, member)
    for told in (
        invoice_paid(member.customer_id, member.subscription_id, now, now + MONTH),
        seen_until(now + MONTH),
        seen_until(now + 2 * MONTH),
        seen_until(now + 2 * MONTH, status="canceled", ended_at=now, type_="customer.subscription.deleted"),
    ):
        await books.report(told)
        assert known != (known := await versions(books, member)), told["type"]


async def test_a_bonus_that_ends_changes_the_version_with_and_without_its_sweep(books: Books) -> None:
    referrer, friend = await books.subscriber(started=MONTH / 2), await books.someone()
    referral_id = await books.credited(referrer, friend)
    before = await versions(books, referrer, friend)
    books.clock.advance(MONTH / 2 + timedelta(minutes=1))
    due = await versions(books, referrer, friend)
    assert due[0] != before[0]
    assert due[1] == before[1]
    assert (await seen(books, referrer)).available == 0
    await books.expire(referral_id)
    assert (await versions(books, referrer))[0] != due[0]
    # Once both are over the referral is settled, which its referrer sees.
    settling = await versions(books, referrer)
    books.clock.advance(MONTH)
    await books.expire(referral_id)
    assert (await books.referral(referral_id)).stage is Stage.SETTLED
    assert await versions(books, referrer) != settling


async def test_sessions_are_glanced_at_together_and_those_that_ended_are_not_there(books: Books) -> None:
    rita, sam = await books.subscriber("rita"), await books.subscriber("sam")
    hashes = []
    for member in (rita, rita, sam):
        async with books.database.transaction() as transaction:
            made = await portal_sessions.issue(transaction, member.account_id)
            session = await portal_sessions.exchange(transaction, made.token)
        assert session is not None
        hashes.append(session.session.secret_hash)
    async with books.database.transaction() as transaction:
        found = await portal_sessions.glances(transaction, hashes)
    assert [found[each].account_id for each in hashes] == [rita.account_id, rita.account_id, sam.account_id]
    assert [found[each].version for each in hashes] == await versions(books, rita, rita, sam)
    async with books.database.transaction() as transaction:
        await portal_sessions.revoke(transaction, rita.account_id)
        assert set(await portal_sessions.glances(transaction, hashes)) == {hashes[2]}


# What it costs


def plant_open_bonuses(owner: psycopg.Connection, member: Member, code: str, number: int) -> None:
    """Let an account have bonuses that can be used, each from another friend, all to be gone within days."""
    names = {"account": member.account_id, "code": code, "number": number}
    with owner.transaction():
        owner.execute(
            """INSERT INTO account (account_id, created_at)
               SELECT %(account)s || '-planted-' || n, now() FROM generate_series(1, %(number)s) n""",
            names,
        )
        owner.execute(
            """INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until,
                   lapses_at, stage, signed_up_at, plan, bonus_minutes, credited_at)
               SELECT %(account)s || '-planted-' || n, %(code)s, 'link', %(account)s, %(account)s || '-planted-' || n,
                   now(), now() + '90 days', now() + '97 days', 'credited', now(), 'pro', 90, now()
               FROM generate_series(1, %(number)s) n""",
            names,
        )
        owner.execute(
            """INSERT INTO grant_lot (grant_id, account_id, referral_id, role, minutes, remaining, credited_at,
                   expires_at)
               SELECT referral_id || '-' || role, account_id, referral_id, role, 90, 90, credited_at,
                   credited_at + '1 day' + number * '1 second'::interval
               FROM (SELECT *, row_number() OVER (ORDER BY referral_id) AS number FROM referral
                     WHERE referral_id LIKE %(account)s || '-planted-%%') made,
                   LATERAL (VALUES ('referrer', referrer_id), ('referee', referee_id)) side (role, account_id)""",
            names,
        )
        owner.execute(
            """INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)
               SELECT grant_id, account_id, 'credit', 90, 'credit', credited_at FROM grant_lot
               WHERE grant_id LIKE %(account)s || '-planted-%%'""",
            names,
        )


async def glance(transaction: Transaction, account_id: str) -> object:
    """What a second of an open dashboard costs."""
    token = await portal_sessions.issue(transaction, account_id)
    opened = await portal_sessions.exchange(transaction, token.token)
    assert opened is not None
    return await portal_sessions.glances(transaction, [opened.session.secret_hash])


async def test_rule_12_a_dashboard_costs_the_same_with_many_referrals(
    books: Books, postgres: EmbeddedPostgres, database_urls: DatabaseUrls, owner: psycopg.Connection
) -> None:
    async def shown(transaction: Transaction, account_id: str) -> object:
        return await dashboard(transaction, account_id, books.plans)

    reads: dict[str, Callable[[Transaction, str], Awaitable[object]]] = {"dashboard": shown, "glance": glance}
    touched: dict[str, list[int]] = {name: [] for name in reads}
    for referrals in (100, 20_000):
        member = await books.subscriber(started=timedelta(days=1))
        await books.credited(member, await books.someone())
        code = (await books.link(member)).code
        give_history(postgres, database_urls, member, code, 3 * referrals)
        await click(books, code, "qr", 3)
        owner.execute("VACUUM (ANALYZE) channel_total, month_total, dashboard_version, click_count, portal_session")
        for name, read in reads.items():
            touched[name].append(await pages_touched(books, member, read))
    for name, (few, many) in touched.items():
        assert many <= few + 20, f"{name}: {few} pages with 100 referrals, {many} with 20000"


# What the database keeps


def test_nobody_but_the_database_writes_a_total(database_urls: DatabaseUrls) -> None:
    with psycopg.connect(plain(database_urls.app), autocommit=True) as connection:
        for statement in (
            "INSERT INTO channel_total VALUES ('a', 'link', 1, 1)",
            "UPDATE month_total SET minutes = 0",
            "DELETE FROM dashboard_version",
            "SELECT count_channel('a', 'link', 1, 1)",
            "SELECT count_month('a', now(), 1, 1, 1)",
            "SELECT dashboard_changed('a')",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement)


TOTALS = (
    "SELECT * FROM channel_total ORDER BY 1, 2",
    "SELECT * FROM month_total ORDER BY 1, 2",
)


def plant_a_past(connection: psycopg.Connection) -> None:
    """Clicks, signups of every kind, and bonuses that were used, expired and voided."""
    with connection.transaction():
        connection.execute(
            """INSERT INTO account (account_id, created_at) SELECT 'friend-' || n, now() FROM generate_series(1, 20) n;
               INSERT INTO account (account_id, created_at) VALUES ('rita', now()), ('sam', now());
               INSERT INTO referral_link VALUES ('ritas2', 'rita', now()), ('sams22', 'sam', now());
               INSERT INTO click_count SELECT 'ritas2', 'c' || n, '2026-01-01', n FROM generate_series(1, 45) n;
               INSERT INTO click_count VALUES ('sams22', 'qr', '2026-01-01', 3), ('sams22', 'qr', '2026-01-02', 4)"""
        )
        connection.execute(
            """INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until,
                   lapses_at, stage, reason, signed_up_at, plan, bonus_minutes, credited_at)
               SELECT 'r' || n, CASE n %% 2 WHEN 0 THEN 'ritas2' ELSE 'sams22' END, 'c' || n,
                   CASE n %% 2 WHEN 0 THEN 'rita' ELSE 'sam' END, 'friend-' || n, at, at + '90 days', at + '97 days',
                   stage, CASE WHEN stage IN ('refused', 'voided') THEN 'why' END,
                   CASE WHEN stage <> 'clicked' THEN at END, 'pro', 90,
                   CASE WHEN stage IN ('credited', 'settled') THEN at + '35 days' END
               FROM (SELECT n, '2026-01-31 23:30:00+00'::timestamptz + n * '1 hour'::interval AS at,
                   (ARRAY['clicked', 'signed_up', 'refused', 'voided', 'credited', 'settled'])[n %% 6 + 1] AS stage
                   FROM generate_series(1, 20) n) made;
               INSERT INTO grant_lot (grant_id, account_id, referral_id, role, minutes, remaining, credited_at,
                   expires_at, voided_at)
               SELECT referral_id || role, account_id, referral_id, role, 90,
                   CASE role WHEN 'referrer' THEN 0 ELSE 50 END, credited_at, credited_at + '30 days',
                   CASE role WHEN 'referrer' THEN credited_at END
               FROM referral, LATERAL (VALUES ('referrer', referrer_id), ('referee', referee_id)) s (role, account_id)
               WHERE credited_at IS NOT NULL;
               INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)
               SELECT grant_id, account_id, kind, delta, kind, credited_at FROM grant_lot,
                   LATERAL (VALUES ('credit', 90), ('usage', -40), ('void', -50)) e (kind, delta)
               WHERE kind <> 'void' OR voided_at IS NOT NULL""".replace("%%", "%")
        )


def test_rule_12_what_there_was_before_is_counted_by_the_migration(postgres: EmbeddedPostgres) -> None:
    urls = copied_database(postgres, "template0", "totals_of_before")
    migrate(urls.owner, "0009")
    with psycopg.connect(plain(urls.owner), autocommit=True) as connection:
        plant_a_past(connection)
    migrate(urls.owner)
    with psycopg.connect(plain(urls.owner), autocommit=True) as connection:
        channels, months = (connection.execute(query).fetchall() for query in TOTALS)
        by_hand = connection.execute(
            """SELECT referrer_id, count(*) FILTER (WHERE stage NOT IN ('clicked', 'refused')), count(credited_at)
               FROM referral GROUP BY 1 ORDER BY 1"""
        ).fetchall()
    for account_id, invited, subscribed in by_hand:
        mine = [row for row in months if row[0] == account_id]
        assert (sum(row[2] for row in mine), sum(row[3] for row in mine)) == (invited, subscribed)
        # Of each bonus of 90 minutes 50 were voided.
        assert sum(row[4] for row in mine) == 40 * subscribed
        assert sum(row[3] for row in channels if row[0] == account_id) == invited
    assert sum(row[2] for row in channels if row[0] == "rita") == sum(range(46))
    assert len([row for row in channels if row[0] == "rita"]) == CHANNELS_APART + 1
    assert ("sam", "qr", 7, 0) in channels
    assert {row[1] for row in months} == {date(2026, 2, 1), date(2026, 3, 1)}


async def test_sessions_that_are_over_are_thrown_away(books: Books) -> None:
    rita = await books.subscriber("rita")

    async def opened(*, use: bool) -> None:
        async with books.database.transaction() as transaction:
            made = await portal_sessions.issue(transaction, rita.account_id)
            if use:
                assert await portal_sessions.exchange(transaction, made.token) is not None

    async def tidied(limit: int = 200) -> int:
        async with books.database.transaction() as transaction:
            return await portal_sessions.tidy(transaction, limit)

    for use in (True, True, False):
        await opened(use=use)
    assert await tidied() == 0
    books.clock.advance(timedelta(minutes=29))
    await opened(use=True)
    assert await tidied() == 0
    books.clock.advance(timedelta(minutes=10))
    assert await tidied(2) == 2
    assert await tidied() == 1
    assert await books.rows("SELECT count(*) FROM portal_session") == [(1,)]
