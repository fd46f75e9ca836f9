"""The ledger: what the rules decide on real facts, and what the database refuses whoever asks."""

import asyncio
import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql
from sqlalchemy.exc import DBAPIError, IntegrityError

from devstack.postgres import EmbeddedPostgres
from ledger import accounts, queries, referrals
from ledger.accounts import AccountErasedError, NotAPaidSubscriberError, Profile, UnknownAccountError
from ledger.database import Database, Question, at_once
from ledger.referrals import ClickedLink, UnknownReferralError
from program.doubts import Doubt
from program.eligibility import LAPSED_WORDS, Refusal
from program.plans import Plans
from program.referral import AttributionWindow, Role, Stage
from tests.stripe_events import (
    charge_refunded,
    checkout_completed,
    invoice_paid,
    invoice_payment_paid,
    line,
    subscription,
    unique,
)
from tests.support import HASHES, MONTH, Books, Clock, DatabaseUrls, Member, copied_database

DAY = timedelta(days=1)
INSTANT = timedelta(microseconds=1)


# The database alone: SQL by hand, as the application and as the owner of the tables


class Hand:
    """SQL by hand."""

    def __init__(self, url: str, names: Mapping[str, Any] | None = None) -> None:
        self.url = url.replace("postgresql+psycopg://", "postgresql://")
        self.names = dict(names or {})

    def refuses(
        self, act: "str | Callable[[HandTransaction], None]", error: type[psycopg.Error], match: str | None = None
    ) -> None:
        """Do something that must fail, at the latest when it is committed."""
        with pytest.raises(error, match=match):
            self._commit(act)

    def _commit(self, act: "str | Callable[[HandTransaction], None]") -> None:
        with psycopg.connect(self.url) as connection:
            transaction = HandTransaction(connection, self.names)
            if isinstance(act, str):
                transaction.run(act)
            else:
                act(transaction)

    @contextmanager
    def accepts(self) -> Iterator["HandTransaction"]:
        """Do something that could be committed, and undo it."""
        with psycopg.connect(self.url) as connection:
            yield HandTransaction(connection, self.names)
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            connection.rollback()

    def run(self, statement: str) -> None:
        """Do something, and commit it."""
        self._commit(statement)


class HandTransaction:
    def __init__(self, connection: psycopg.Connection[Any], names: dict[str, Any]) -> None:
        self._connection = connection
        self._names = names

    def run(self, statement: str, **more: Any) -> int:
        return self._connection.execute(statement.encode(), {**self._names, **more}).rowcount

    def refuses(self, statement: str, error: type[psycopg.Error], match: str, **more: Any) -> None:
        """Do something that must fail, and go on as if it had not been tried."""
        with pytest.raises(error, match=match), self._connection.transaction():
            self.run(statement, **more)

    def grant(self, grant_id: str, account: str, role: str, **values: Any) -> None:
        """A lot and the journal entry that brings it, on the second referral unless told."""
        row = {
            "grant_id": grant_id,
            "account_id": self._names[account],
            "referral_id": self._names["second"],
            "role": role,
            "minutes": 90,
            "remaining": 90,
            "credited_at": self._names["now"],
            "expires_at": self._names["now"] + timedelta(days=20),
        } | values
        self.insert("grant_lot", row)
        entry = {name: row[name] for name in ("grant_id", "account_id")} | {"at": row["credited_at"]}
        self.insert("entry", entry | {"kind": "credit", "delta": row["remaining"], "operation_key": "credit"})

    def insert(self, table: str, row: dict[str, Any]) -> None:
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(map(sql.Placeholder, row)),
        )
        self._connection.execute(statement, row)


async def _story_to_meddle_with(urls: DatabaseUrls, plans: Plans) -> dict[str, Any]:
    """One credited referral and two attributed ones."""
    database = Database(urls.app, pool_size=1)
    books = Books(database, plans, Clock())
    referrer = await books.subscriber()
    friend, other, third = [await books.someone(name) for name in ("friend", "other", "third")]
    first = await books.credited(referrer, friend)
    names = {
        "first": first,
        "second": await books.sign_up(referrer, other),
        "third": await books.sign_up(referrer, third),
        "referrer": referrer.account_id,
        "friend": friend.account_id,
        "other": other.account_id,
        "third_account": third.account_id,
        "friend_lot": f"{first}-referee",
        "now": datetime.now(UTC),
    }
    await database.close()
    return names


@pytest.fixture(scope="module")
def hands(postgres: EmbeddedPostgres, template: str, plans: Plans) -> dict[str, Hand]:
    """The hands of both roles on one database for all tests, which leave nothing behind."""
    urls = copied_database(postgres, template, unique("by_hand"))
    names = asyncio.run(_story_to_meddle_with(urls, plans))
    return {"owner": Hand(urls.owner, names), "app": Hand(urls.app, names)}


@pytest.fixture(params=["owner", "app"])
def hand(request: pytest.FixtureRequest, hands: dict[str, Hand]) -> Hand:
    return hands[request.param]


def test_rule_6_both_sides_by_hand_are_accepted(hand: Hand) -> None:
    """What the refusals below differ from in one point each."""
    with hand.accepts() as transaction:
        transaction.grant("a", "referrer", "referrer")
        transaction.grant("b", "other", "referee")


@pytest.mark.parametrize(("account", "role"), [("referrer", "referrer"), ("other", "referee")])
def test_rule_6_one_side_without_the_other_is_refused_at_commit(hand: Hand, account: str, role: str) -> None:
    hand.refuses(lambda transaction: transaction.grant("a", account, role), errors.CheckViolation, "rule 6")


@pytest.mark.parametrize("difference", ["minutes", "moment"])
def test_rule_6_unequal_sides_are_refused(hand: Hand, difference: str) -> None:
    later = hand.names["now"] + INSTANT
    other = {"minutes": 91, "remaining": 91} if difference == "minutes" else {"credited_at": later}

    def credit(transaction: HandTransaction) -> None:
        transaction.grant("a", "referrer", "referrer")
        transaction.grant("b", "other", "referee", **other)

    hand.refuses(credit, errors.CheckViolation, "rule 6")


@pytest.mark.parametrize("side", ["referrer", "referee"])
def test_rule_6_a_grant_to_an_account_that_is_no_side_is_refused(hand: Hand, side: str) -> None:
    def credit(transaction: HandTransaction) -> None:
        transaction.grant("a", "friend" if side == "referrer" else "referrer", "referrer")
        transaction.grant("b", "third_account" if side == "referee" else "other", "referee")

    hand.refuses(credit, errors.CheckViolation, "rule 6")


@pytest.mark.parametrize(("account", "role"), [("referrer", "referrer"), ("other", "referee")])
def test_rule_3_a_second_grant_for_one_side_is_refused(hand: Hand, account: str, role: str) -> None:
    first = hand.names["first"]
    hand.refuses(lambda tx: tx.grant("a", account, role, referral_id=first), errors.UniqueViolation, "role")


def test_rule_11_a_second_grant_for_one_referee_is_refused(hand: Hand) -> None:
    hand.refuses(lambda tx: tx.grant("b", "friend", "referee"), errors.UniqueViolation, "once_a_referee")


async def test_rule_11_the_database_refuses_a_second_credit_when_the_stage_lies(
    books: Books, database_urls: DatabaseUrls
) -> None:
    """The code's own check is the stage: set back by hand, only the keys are left to refuse."""
    referral_id = await books.credited(await books.subscriber(), await books.someone())
    Hand(database_urls.owner, {"id": referral_id}).run(
        "UPDATE referral SET stage = 'signed_up' WHERE referral_id = %(id)s"
    )
    with pytest.raises(IntegrityError):
        await books.credit(referral_id)
    assert await books.rows("SELECT count(*), sum(delta) FROM entry") == [(2, 180)]


REFUSED_ON_A_LOT = {
    "remaining below zero": (
        "UPDATE grant_lot SET remaining = -1 WHERE grant_id = %(friend_lot)s",
        errors.CheckViolation,
        '"grant_lot_check"',
    ),
    "remaining more than the lot": (
        "INSERT INTO grant_lot (grant_id, account_id, referral_id, role, minutes, remaining, credited_at, expires_at)"
        " VALUES ('a', %(other)s, %(second)s, 'referee', 90, 91, %(now)s, %(now)s + interval '1 hour')",
        errors.CheckViolation,
        '"grant_lot_check"',
    ),
    "minutes that come back": (
        "UPDATE grant_lot SET remaining = 80 WHERE grant_id = %(friend_lot)s;"
        "UPDATE grant_lot SET remaining = 81 WHERE grant_id = %(friend_lot)s",
        errors.CheckViolation,
        "return",
    ),
    "remaining without an entry": (
        "UPDATE grant_lot SET remaining = 80 WHERE grant_id = %(friend_lot)s",
        errors.CheckViolation,
        "journal",
    ),
    "an entry without remaining": (
        "INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)"
        " VALUES (%(friend_lot)s, %(friend)s, 'usage', -10, 'usage', %(now)s)",
        errors.CheckViolation,
        "journal",
    ),
    "an entry of another account": (
        "UPDATE grant_lot SET remaining = 80 WHERE grant_id = %(friend_lot)s;"
        "INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)"
        " VALUES (%(friend_lot)s, %(other)s, 'usage', -10, 'usage', %(now)s)",
        errors.CheckViolation,
        "journal",
    ),
    "a use that gives": (
        "INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)"
        " VALUES (%(friend_lot)s, %(friend)s, 'usage', 10, 'usage', %(now)s)",
        errors.CheckViolation,
        "delta|check",
    ),
    "a second credit entry": (
        "INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)"
        " VALUES (%(friend_lot)s, %(friend)s, 'credit', 90, 'again', %(now)s)",
        errors.UniqueViolation,
        "entry_one_credit",
    ),
    "one operation twice": (
        "INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)"
        " VALUES (%(friend_lot)s, %(friend)s, 'usage', -1, 'credit', %(now)s)",
        errors.UniqueViolation,
        "operation_key",
    ),
    "other minutes": (
        "UPDATE grant_lot SET minutes = 91 WHERE grant_id = %(friend_lot)s",
        errors.CheckViolation,
        "credited with",
    ),
    "another account": (
        "UPDATE grant_lot SET account_id = %(other)s WHERE grant_id = %(friend_lot)s",
        errors.CheckViolation,
        "credited with",
    ),
    "another moment": (
        "UPDATE grant_lot SET credited_at = credited_at - interval '1 second' WHERE grant_id = %(friend_lot)s",
        errors.CheckViolation,
        "credited with",
    ),
    "over with minutes left": (
        "UPDATE grant_lot SET expired_at = expires_at WHERE grant_id = %(friend_lot)s",
        errors.CheckViolation,
        "check",
    ),
    "expired before its end": (
        "UPDATE grant_lot SET remaining = 0, expired_at = expires_at - interval '1 microsecond'"
        " WHERE grant_id = %(friend_lot)s",
        errors.CheckViolation,
        "check",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED_ON_A_LOT))
def test_a_lot_and_its_journal_are_guarded(hand: Hand, name: str) -> None:
    statement, error, match = REFUSED_ON_A_LOT[name]

    def meddle(transaction: HandTransaction) -> None:
        for each in statement.split(";"):
            transaction.run(each)

    hand.refuses(meddle, error, match)


def test_rule_9_an_expiry_made_earlier_is_refused(hand: Hand) -> None:
    hand.refuses(
        "UPDATE grant_lot SET expires_at = expires_at - interval '1 microsecond' WHERE grant_id = %(friend_lot)s",
        errors.CheckViolation,
        "rule 9",
    )


def test_rule_7_an_expiry_after_more_than_31_days_is_refused(hand: Hand) -> None:
    longest = "UPDATE grant_lot SET expires_at = credited_at + interval '744 hours' {} WHERE grant_id = %(friend_lot)s"
    with hand.accepts() as transaction:
        assert transaction.run(longest.format("")) == 1
    hand.refuses(longest.format("+ interval '1 microsecond'"), errors.CheckViolation)


def test_rule_7_a_lot_that_is_over_is_over_once_and_for_ever(hand: Hand) -> None:
    end = (
        "INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)"
        " VALUES (%(friend_lot)s, %(friend)s, %(kind)s, %(delta)s, %(key)s, %(now)s)"
    )
    longer = "UPDATE grant_lot SET expires_at = credited_at + interval '744 hours' WHERE grant_id = %(friend_lot)s"
    again = "UPDATE grant_lot SET expired_at = NULL WHERE grant_id = %(friend_lot)s"
    with hand.accepts() as transaction:
        transaction.run(end, kind="expiry", delta=-90, key="expiry")
        transaction.run("UPDATE grant_lot SET remaining = 0, expired_at = expires_at WHERE grant_id = %(friend_lot)s")
        for kind in ("expiry", "void"):
            transaction.refuses(end, errors.UniqueViolation, "entry_one_end", kind=kind, delta=0, key=f"{kind} again")
        transaction.refuses(longer, errors.CheckViolation, "is over")
        transaction.refuses(again, errors.CheckViolation, "is over")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entry SET kind = kind",
        "UPDATE referral_event SET stage = stage",
        *(f"DELETE FROM {table}" for table in ("entry", "referral_event", "grant_lot")),  # noqa: S608
        *(f"TRUNCATE {table} CASCADE" for table in ("entry", "referral_event", "grant_lot")),
    ],
)
def test_what_is_append_only_is_kept(hands: dict[str, Hand], change: str) -> None:
    hands["owner"].refuses(change, errors.RestrictViolation, "append-only")
    hands["app"].refuses(change, errors.InsufficientPrivilege)


def test_rule_10_a_second_attributed_referral_of_one_referee_is_refused(hand: Hand) -> None:
    again = "UPDATE referral SET referee_id = %(other)s WHERE referral_id = %(third)s"
    hand.refuses(again, errors.UniqueViolation, "attributed_once")


def test_rule_10_refused_and_lapsed_referrals_of_one_referee_do_not_count(hand: Hand) -> None:
    for stage in ("refused", "lapsed"):
        with hand.accepts() as transaction:
            transaction.run(
                "UPDATE referral SET referee_id = %(other)s, stage = %(stage)s, reason = 'by hand'"
                " WHERE referral_id = %(third)s",
                stage=stage,
            )


@pytest.mark.parametrize("stage", ["lapsed", "refused", "voided"])
def test_rule_22_an_end_without_a_bonus_and_without_a_reason_is_refused(hand: Hand, stage: str) -> None:
    change = f"UPDATE referral SET stage = '{stage}' WHERE referral_id = %(second)s"  # noqa: S608
    hand.refuses(change, errors.CheckViolation)
    with hand.accepts() as transaction:
        change = "UPDATE referral SET stage = %(stage)s, reason = 'so' WHERE referral_id = %(second)s"
        assert transaction.run(change, stage=stage) == 1


@pytest.mark.parametrize("stage", ["credited", "settled", "unheard-of"])
def test_a_stage_without_what_belongs_to_it_is_refused(hand: Hand, stage: str) -> None:
    change = f"UPDATE referral SET stage = '{stage}' WHERE referral_id = %(second)s"  # noqa: S608
    hand.refuses(change, errors.CheckViolation)


def test_rule_18_a_referral_of_oneself_cannot_be_attributed(hand: Hand) -> None:
    hand.refuses("UPDATE referral SET referee_id = referrer_id WHERE referral_id = %(second)s", errors.CheckViolation)


FORBIDDEN = [
    "CREATE TABLE mine (id integer)",
    "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "DROP TABLE entry",
    "ALTER TABLE entry DISABLE TRIGGER ALL",
    "ALTER TABLE grant_lot DROP CONSTRAINT grant_lot_minutes_check",
    "DROP TRIGGER grant_lot_guard ON grant_lot",
    "CREATE OR REPLACE FUNCTION ledger_now() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()'",
    "SET session_replication_role = replica",
    "DELETE FROM entry",
    "TRUNCATE entry",
    "DELETE FROM grant_lot",
    "DELETE FROM referral",
    "DELETE FROM account",
    "DELETE FROM customer",
    "DELETE FROM paid_period",
    "DELETE FROM stripe_event",
    "DELETE FROM identity",
    "UPDATE identity SET first_seen_at = now()",
    "UPDATE referral_link SET code = 'stolen'",
    "DELETE FROM referral_link",
    "UPDATE terms_acceptance SET terms_version = 'other'",
    "UPDATE entry SET delta = 1",
    "UPDATE referral_event SET reason = 'other'",
    "UPDATE alembic_version SET version_num = '0'",
    "SET ROLE referrals_owner",
    "COPY account TO PROGRAM 'cat'",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_the_application_may_not_do_more_than_it_needs(hands: dict[str, Hand], statement: str) -> None:
    hands["app"].refuses(statement, errors.InsufficientPrivilege)


# Rule 1: links


async def test_rule_1_only_a_paid_subscriber_is_given_a_link(books: Books) -> None:
    member = await books.someone()
    with pytest.raises(UnknownAccountError):
        await books.link(member)
    await books.put(member, linked=True)
    with pytest.raises(NotAPaidSubscriberError):
        await books.link(member)
    await books.pay(member)
    assert (await books.link(member)).account_id == member.account_id


@pytest.mark.parametrize("kind", ["trial", "coupon", "unpaid"])
async def test_rule_1_a_trial_a_full_coupon_or_an_unpaid_subscription_is_no_paid_one(books: Books, kind: str) -> None:
    member = await books.someone()
    await books.put(member, linked=True)
    now = await books.clock.now()
    of = (member.customer_id, member.subscription_id, now, now + MONTH)
    await books.report(subscription(*of, status="trialing" if kind == "trial" else "active"))
    if kind != "unpaid":
        await books.report(invoice_paid(*of, amount_paid=0))
    with pytest.raises(NotAPaidSubscriberError):
        await books.link(member)


async def test_rule_1_an_invoice_settled_from_a_balance_pays_for_its_period(books: Books) -> None:
    member = await books.someone()
    await books.put(member, linked=True)
    now = await books.clock.now()
    of = (member.customer_id, member.subscription_id, now, now + MONTH)
    await books.report(subscription(*of), invoice_paid(*of, amount_paid=0, total=2900))
    assert (await books.link(member)).code


async def test_rule_1_the_link_stays_the_same_and_works_after_a_lapse(books: Books, clock: Clock) -> None:
    member = await books.subscriber()
    link = await books.link(member)
    clock.advance(timedelta(days=200))
    async with books.database.transaction() as transaction:
        assert not (await accounts.standing_seen(transaction, member.account_id, books.plans)).paid
    assert await books.link(member) == link
    friend = await books.someone()
    referral_id = await books.credited(member, friend)
    assert (await books.referral(referral_id)).stage is Stage.CREDITED


@pytest.mark.parametrize(
    ("after_end", "ended", "paid"),
    [
        (-timedelta(minutes=1), False, True),
        (timedelta(0), False, True),
        (3 * DAY - timedelta(minutes=1), False, True),
        (3 * DAY + timedelta(minutes=1), False, False),
        (timedelta(0), True, False),
        (-timedelta(minutes=1), True, True),
    ],
)
async def test_rule_1_a_renewal_has_three_days_unless_the_subscription_has_ended(
    books: Books, clock: Clock, after_end: timedelta, ended: bool, paid: bool
) -> None:
    member = await books.someone()
    await books.put(member, linked=True)
    end = (await clock.now()).replace(microsecond=0) + timedelta(hours=1)
    of = (member.customer_id, member.subscription_id, end - MONTH, end)
    await books.report(invoice_paid(*of), subscription(*of))
    if ended:
        await books.report(subscription(*of, status="canceled", ended_at=end - timedelta(minutes=30)))
    clock.advance(end + after_end - await clock.now())
    async with books.database.transaction() as transaction:
        assert (await accounts.standing_seen(transaction, member.account_id, books.plans)).paid is paid


async def test_rule_1_two_members_never_share_a_code(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance gives the second member the first one's code, and then one of its own."""
    letters = itertools.chain("2" * 10, "2" * 10, "3" * 10)
    monkeypatch.setattr(secrets, "choice", lambda _: next(letters))
    first, second = await books.link(await books.subscriber()), await books.link(await books.subscriber())
    assert (first.code, second.code) == ("2" * 10, "3" * 10)
    async with books.database.transaction() as transaction:
        assert await accounts.link_with_code(transaction, second.code) == second


async def test_a_link_is_found_however_its_code_is_written(books: Books) -> None:
    link = await books.link(await books.subscriber())
    async with books.database.transaction() as transaction:
        for written in (link.code, link.code.upper(), f" {link.code[:5]}-{link.code[5:]}\n"):
            assert await accounts.link_with_code(transaction, written) == link
        assert await accounts.link_with_code(transaction, "no-such-code") is None


async def test_rule_13_the_terms_are_recorded_with_version_and_time_each_once(books: Books, clock: Clock) -> None:
    member = await books.subscriber()
    before = await clock.now()
    await books.link(member, "2026-01")
    after = await clock.now()
    clock.advance(DAY)
    await books.link(member, "2026-01")
    await books.link(member, "2026-02")
    query = "SELECT terms_version, accepted_at FROM terms_acceptance WHERE account_id = :id ORDER BY accepted_at"
    (first, at), (second, later) = await books.rows(query, id=member.account_id)
    assert (first, second) == ("2026-01", "2026-02")
    assert before <= at <= after
    assert later >= before + DAY


async def test_rule_13_nobody_without_a_link_has_accepted_anything(books: Books) -> None:
    member = await books.someone()
    await books.put(member)
    with pytest.raises(NotAPaidSubscriberError):
        await books.link(member)
    assert await books.rows("SELECT 1 FROM terms_acceptance") == []


# Accounts


async def test_what_is_said_again_of_an_account_completes_what_is_known(books: Books) -> None:
    member = await books.someone()
    at = member.created_at

    async def say(**values: Any) -> None:
        profile = replace(Profile(member.account_id, member.email, at), **values)
        async with books.database.transaction() as transaction:
            await accounts.put(transaction, profile, HASHES)

    async def known() -> tuple[Any, ...]:
        return (await books.rows("SELECT first_name, show_first_name, created_at FROM account"))[0]

    await say(first_name="Ada", show_first_name=True)
    await say()
    assert await known() == ("Ada", True, at)
    await say(created_at=at + DAY, show_first_name=False)
    assert await known() == ("Ada", False, at)
    await say(created_at=at - DAY, first_name="Eva")
    assert await known() == ("Eva", False, at - DAY)


async def test_rule_24_no_e_mail_is_stored(books: Books) -> None:
    member = await books.someone("very-personal")
    await books.put(member, linked=True)
    for table in ("account", "identity"):
        stored = str(await books.rows(f"SELECT * FROM {table}"))  # noqa: S608
        # A hash may hold any byte, an at sign too.
        assert member.email not in stored
        assert "example" not in stored


async def test_rule_23_nothing_is_stored_of_an_erased_account(books: Books, database_urls: DatabaseUrls) -> None:
    member = await books.subscriber()
    link = await books.link(member)
    Hand(database_urls.owner).run("UPDATE account SET erased_at = now(), email_hash = NULL, first_name = NULL")
    with pytest.raises(AccountErasedError):
        await books.put(member)
    with pytest.raises(UnknownAccountError):
        await books.link(member)
    with pytest.raises(UnknownAccountError):
        await books.summary(member)
    async with books.database.transaction() as transaction:
        found = await accounts.link_with_code(transaction, link.code)
    assert found is not None
    assert found.erased


# Rules 2 and 16: whose referral a signup is


async def test_rule_2_the_same_account_and_token_are_the_same_referral(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    click = await books.click(referrer)
    first = await books.reserve(click, referrer, friend)
    assert first.referral_id == click.referral_id
    assert (first.stage, first.referrer_id, first.window) == (Stage.CLICKED, referrer.account_id, click.window)
    await books.attribute(first.referral_id)
    again = await books.reserve(click, referrer, friend)
    assert (again.referral_id, again.stage) == (first.referral_id, Stage.SIGNED_UP)


async def test_rule_16_a_second_person_with_one_token_is_a_new_referral_of_the_same_referrer(books: Books) -> None:
    referrer = await books.subscriber()
    click = await books.click(referrer)
    ids = []
    for _ in range(3):
        friend = await books.someone()
        reservation = await books.reserve(click, referrer, friend)
        assert (await books.reserve(click, referrer, friend)).referral_id == reservation.referral_id
        assert (await books.attribute(reservation.referral_id)).stage is Stage.SIGNED_UP
        assert (await books.referral(reservation.referral_id)).referrer_account_id == referrer.account_id
        ids.append(reservation.referral_id)
    assert ids[0] == click.referral_id
    assert len(set(ids)) == 3
    assert (await books.summary(referrer)).invited == 3


async def test_nothing_is_decided_about_a_referral_that_nobody_signed_up_with(books: Books) -> None:
    for decide in (books.attribute, books.credit, books.expire):
        with pytest.raises(UnknownReferralError):
            await decide("unheard-of")


# Rules 10 and 18: whose signup counts


async def refused(books: Books, referrer: Member, friend: Member, click: ClickedLink | None = None) -> str | None:
    """Report a signup, and give why it was refused; nothing of it may count then."""
    before = await books.summary(referrer)
    reservation = await books.reserve(click or await books.click(referrer), referrer, friend)
    result = await books.attribute(reservation.referral_id)
    assert await books.attribute(reservation.referral_id) == result
    steps = await books.story(reservation.referral_id)
    assert [(step.stage, step.reason) for step in steps] == [(result.stage, result.reason)]
    if result.stage is Stage.SIGNED_UP:
        return None
    assert result.stage is Stage.REFUSED
    assert (await books.summary(referrer)).invited == before.invited
    ((refusal,),) = await books.rows("SELECT refusal FROM referral WHERE referral_id = :id", id=reservation.referral_id)
    # Rule 22: the reason is there, in words.
    assert result.reason == Refusal(refusal).words
    return str(refusal)


@pytest.mark.parametrize(("age", "expected"), [(120 * 10**6, None), (120 * 10**6 + 1, Refusal.EXISTING_ACCOUNT)])
async def test_rule_10_an_account_older_than_the_click_by_more_than_two_minutes_is_refused(
    books: Books, age: int, expected: Refusal | None
) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    click = await books.click(referrer, at=friend.created_at + age * INSTANT)
    assert await refused(books, referrer, friend, click) == expected


async def test_rule_10_an_account_of_another_referral_is_refused(books: Books) -> None:
    first, second, friend = await books.subscriber("first"), await books.subscriber("second"), await books.someone()
    assert await refused(books, first, friend) is None
    assert await refused(books, second, friend) == Refusal.ALREADY_REFERRED
    assert await refused(books, first, friend) == Refusal.ALREADY_REFERRED


async def test_rule_10_a_refused_referral_does_not_count(books: Books) -> None:
    first, second, friend = await books.subscriber("first"), await books.subscriber("second"), await books.someone()
    late = await books.click(first, at=friend.created_at + timedelta(minutes=3))
    assert await refused(books, first, friend, late) == Refusal.EXISTING_ACCOUNT
    assert await refused(books, second, friend, await books.click(second, at=friend.created_at)) is None


async def test_rule_10_one_s_own_earlier_put_is_never_before(books: Books, clock: Clock) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    for _ in range(2):
        await books.put(friend, linked=True)
        clock.advance(timedelta(seconds=10))
    assert await refused(books, referrer, friend) is None


@pytest.mark.parametrize(
    ("theirs", "own", "expected"),
    [
        ("jo.doe+kally@gmail.com", "JoDoe@googlemail.com", Refusal.KNOWN_EMAIL),
        ("jo+one@outlook.com", "Jo@Outlook.com", Refusal.KNOWN_EMAIL),
        ("jo.doe@example.com", "jodoe@example.com", None),
        ("jo+one@example.com", "jo@example.com", None),
    ],
)
async def test_rule_10_an_e_mail_of_another_account_before_is_refused(
    books: Books, theirs: str, own: str, expected: Refusal | None
) -> None:
    referrer, other, friend = await books.subscriber(), await books.someone(), await books.someone()
    other.email, friend.email = theirs, own
    await books.put(other)
    assert await refused(books, referrer, friend) == expected


async def test_rule_10_an_e_mail_that_another_account_had_once_is_refused(books: Books) -> None:
    referrer, other, friend = await books.subscriber(), await books.someone(), await books.someone()
    await books.put(other)
    friend.email, other.email = other.email, "new@example.com"
    await books.put(other)
    assert await refused(books, referrer, friend) == Refusal.KNOWN_EMAIL


async def test_rule_10_an_e_mail_that_another_account_took_later_is_not_refused(books: Books) -> None:
    referrer, other, friend = await books.subscriber(), await books.someone(), await books.someone()
    await books.put(friend)
    other.email = friend.email
    await books.put(other)
    assert await refused(books, referrer, friend) is None
    # The other one is the second to have it.
    assert await refused(books, referrer, other) == Refusal.KNOWN_EMAIL


async def test_rule_10_a_customer_of_another_account_before_is_refused(books: Books) -> None:
    referrer, other, friend = await books.subscriber(), await books.someone(), await books.someone()
    await books.put(other, linked=True)
    friend.customer_id = other.customer_id
    await books.put(friend, linked=True)
    assert await refused(books, referrer, friend) == Refusal.KNOWN_CUSTOMER


@pytest.mark.parametrize("what", ["email", "customer"])
async def test_rule_10_what_an_erased_account_had_is_still_known(
    books: Books, database_urls: DatabaseUrls, what: str
) -> None:
    referrer, other, friend = await books.subscriber(), await books.someone(), await books.someone()
    await books.put(other, linked=True)
    Hand(database_urls.owner, {"id": other.account_id}).run(
        "UPDATE account SET erased_at = now(), email_hash = NULL WHERE account_id = %(id)s"
    )
    if what == "email":
        friend.email = other.email
    else:
        friend.customer_id = other.customer_id
    await books.put(friend, linked=True)
    expected = Refusal.KNOWN_EMAIL if what == "email" else Refusal.KNOWN_CUSTOMER
    assert await refused(books, referrer, friend) == expected


@pytest.mark.parametrize(
    ("paid_before_click", "amount", "expected"),
    [
        (timedelta(minutes=1), 2900, Refusal.PAID_BEFORE),
        (timedelta(minutes=1), 0, None),
        (-timedelta(minutes=1), 2900, None),
        # Stripe tells whole seconds: paid within the second of the click is not before it.
        (timedelta(0), 2900, None),
    ],
)
async def test_rule_10_a_customer_that_paid_before_the_click_is_refused(
    books: Books, paid_before_click: timedelta, amount: int, expected: Refusal | None
) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    clicked_at = friend.created_at.replace(microsecond=900_000)
    paid_at = clicked_at - paid_before_click
    await books.put(friend, linked=True)
    await books.report(
        invoice_paid(friend.customer_id, friend.subscription_id, paid_at, paid_at + MONTH, amount_paid=amount)
    )
    assert await refused(books, referrer, friend, await books.click(referrer, at=clicked_at)) == expected


async def test_rule_18_one_s_own_link_is_refused(books: Books) -> None:
    referrer = await books.subscriber()
    assert await refused(books, referrer, referrer) == Refusal.SAME_ACCOUNT


async def test_rule_18_the_referrer_s_e_mail_is_refused(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    friend.email = referrer.email.upper()
    assert await refused(books, referrer, friend) == Refusal.SAME_EMAIL


async def test_rule_18_the_referrer_s_customer_is_refused(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    friend.customer_id = referrer.customer_id
    await books.put(friend, linked=True)
    assert await refused(books, referrer, friend) == Refusal.SAME_CUSTOMER


@pytest.mark.parametrize("way", ["put", "checkout", "the referrer's put"])
async def test_rule_18_a_customer_shared_after_the_attribution_is_refused_before_the_credit(
    books: Books, way: str
) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    await books.pay(friend)
    if way == "the referrer's put":
        referrer.customer_id = friend.customer_id
        await books.put(referrer, linked=True)
    elif way == "put":
        friend.customer_id = referrer.customer_id
        await books.put(friend, linked=True)
    else:
        await books.report(checkout_completed(referrer.customer_id, friend.account_id))
    result = await books.credit(referral_id)
    assert (result.stage, result.reason) == (Stage.REFUSED, Refusal.SAME_CUSTOMER.words)
    assert await books.credit(referral_id) == result
    assert await books.lots(referrer) == await books.lots(friend) == []
    assert [(step.stage, step.reason) for step in await books.story(referral_id)] == [
        (Stage.SIGNED_UP, None),
        (Stage.REFUSED, Refusal.SAME_CUSTOMER.words),
    ]


async def test_rule_18_an_e_mail_shared_after_the_attribution_is_refused_before_the_credit(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    friend.email = referrer.email
    await books.put(friend, linked=True)
    await books.pay(friend)
    assert (await books.credit(referral_id)).reason == Refusal.SAME_EMAIL.words


async def test_rule_18_a_second_account_never_takes_the_payments_of_a_customer(books: Books) -> None:
    referrer, owner, friend = await books.subscriber(), await books.someone("owner"), await books.someone()
    await books.put(owner, linked=True)
    referral_id = await books.sign_up(referrer, friend)
    friend.customer_id = owner.customer_id
    await books.put(friend, linked=True)
    await books.report(checkout_completed(owner.customer_id, friend.account_id))
    news = await books.report(*await books.pay(owner))
    assert [each.payments for each in news] == [(), ()]
    assert not (await books.attribute(referral_id)).payment_known
    # Known only after the signup was attributed, and looked at again before the credit (rule 10).
    refused = await books.credit(referral_id)
    assert (refused.stage, refused.reason) == (Stage.REFUSED, Refusal.KNOWN_CUSTOMER.words)
    assert await books.lots(friend) == []
    assert (await books.summary(referrer)).invited == 0
    async with books.database.transaction() as transaction:
        assert not (await accounts.standing_seen(transaction, friend.account_id, books.plans)).paid
        assert (await accounts.standing_seen(transaction, owner.account_id, books.plans)).paid


async def test_rule_23_a_friend_erased_before_the_credit_is_refused(books: Books, database_urls: DatabaseUrls) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    await books.pay(friend)
    Hand(database_urls.owner, {"id": friend.account_id}).run(
        "UPDATE account SET erased_at = now(), email_hash = NULL WHERE account_id = %(id)s"
    )
    result = await books.credit(referral_id)
    assert (result.stage, result.reason) == (Stage.REFUSED, Refusal.ACCOUNT_ERASED.words)


# Rule 15: in time


@pytest.mark.parametrize(("early", "expected"), [(INSTANT, Stage.SIGNED_UP), (timedelta(0), Stage.LAPSED)])
async def test_rule_15_an_account_made_within_the_window_counts(
    books: Books, early: timedelta, expected: Stage
) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    click = await books.click(referrer, at=friend.created_at - 90 * DAY + early)
    reservation = await books.reserve(click, referrer, friend)
    result = await books.attribute(reservation.referral_id)
    assert (result.stage, result.reason) == (expected, None if expected is Stage.SIGNED_UP else LAPSED_WORDS)
    assert (await books.summary(referrer)).invited == (expected is Stage.SIGNED_UP)


async def test_rule_15_after_the_signup_there_is_no_deadline(books: Books, clock: Clock) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    clock.advance(timedelta(days=1000))
    await books.put(friend, linked=True)
    await books.pay(friend)
    assert (await books.credit(referral_id)).stage is Stage.CREDITED


async def test_rule_15_a_reserved_signup_lapses_once_and_only_if_nothing_became_of_it(books: Books) -> None:
    referrer, friend, other = await books.subscriber(), await books.someone(), await books.someone()
    reservation = await books.reserve(await books.click(referrer), referrer, friend)
    attributed = await books.sign_up(referrer, other)
    async with books.database.transaction() as transaction:
        assert await referrals.lapse(transaction, reservation.referral_id) is Stage.LAPSED
        assert await referrals.lapse(transaction, reservation.referral_id) is Stage.LAPSED
        assert await referrals.lapse(transaction, attributed) is Stage.SIGNED_UP
    steps = await books.story(reservation.referral_id)
    assert [(step.stage, step.reason) for step in steps] == [(Stage.LAPSED, LAPSED_WORDS)]
    assert (await books.attribute(reservation.referral_id)).stage is Stage.LAPSED
    # A lapsed referral does not count: the friend can still be somebody's.
    assert await refused(books, referrer, friend) is None


# Rules 3, 5, 11 and 12: the credit and the numbers


@pytest.mark.parametrize(("plan", "minutes"), [("starter", 22), ("pro", 90), ("power", 300)])
async def test_rule_3_both_get_a_quarter_of_the_friend_s_plan(books: Books, plan: str, minutes: int) -> None:
    referrer, friend = await books.subscriber(plan="starter"), await books.someone()
    referral_id = await books.credited(referrer, friend, plan=plan)
    (theirs,), (own,) = await books.lots(referrer), await books.lots(friend)
    assert (theirs.role, theirs.minutes, theirs.remaining) == (Role.REFERRER, minutes, minutes)
    assert (own.role, own.minutes, own.remaining) == (Role.REFEREE, minutes, minutes)
    assert theirs.credited_at == own.credited_at
    shown = await books.referral(referral_id)
    assert (shown.stage, shown.plan, shown.bonus_minutes) == (Stage.CREDITED, plan, minutes)
    assert shown.credited_at == own.credited_at
    assert shown.expires_at == {Role.REFERRER: theirs.expires_at, Role.REFEREE: own.expires_at}


async def test_rule_5_and_12_many_friends_bring_many_bonuses(books: Books) -> None:
    referrer = await books.subscriber()
    for number in range(7):
        await books.credited(referrer, await books.someone(), plan="power" if number % 2 else "starter")
    await books.sign_up(referrer, await books.someone())
    await refused(books, referrer, referrer)
    summary = await books.summary(referrer)
    earned = 4 * 22 + 3 * 300
    assert (summary.invited, summary.subscribed) == (8, 7)
    assert (summary.bonus_minutes_earned, summary.bonus_minutes_available) == (earned, earned)
    assert summary.next_expiry == min(lot.expires_at for lot in await books.lots(referrer))


async def test_rule_12_minutes_earned_count_in_either_role_and_outlive_their_expiry(books: Books, clock: Clock) -> None:
    first, middle = await books.subscriber(), await books.someone()
    brought = await books.credited(first, middle)
    await books.credited(middle, await books.someone(), plan="power")
    assert (await books.summary(middle)).bonus_minutes_earned == 90 + 300
    clock.advance(timedelta(days=31))
    await books.expire(brought)
    summary = await books.summary(middle)
    assert (summary.bonus_minutes_earned, summary.bonus_minutes_available, summary.next_expiry) == (390, 0, None)
    assert (summary.invited, summary.subscribed) == (1, 1)


async def test_rule_11_a_friend_who_comes_back_brings_no_second_bonus(books: Books, clock: Clock) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.credited(referrer, friend)
    now = await clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    await books.report(subscription(*of, status="canceled", ended_at=now, type_="customer.subscription.deleted"))
    lots = await books.lots(referrer), await books.lots(friend)
    assert [lot.remaining for each in lots for lot in each] == [90, 90]
    clock.advance(timedelta(days=40))
    await books.expire(referral_id)
    friend.subscription_id += "_again"
    news = await books.report(*await books.pay(friend, plan="power"))
    assert [each.payments for each in news] == [(), ()]
    assert (await books.credit(referral_id)).minutes == 90
    assert await refused(books, await books.subscriber("other"), friend) == Refusal.EXISTING_ACCOUNT
    assert await books.rows("SELECT count(*) FROM grant_lot") == [(2,)]
    assert (await books.summary(referrer)).subscribed == 1


# Rule 14: what is a payment


async def signed_up(books: Books) -> tuple[str, Member]:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    return referral_id, friend


@pytest.mark.parametrize("kind", ["trial", "coupon", "balance", "unpaid", "no subscription"])
async def test_rule_14_what_is_no_payment_credits_nobody_and_the_first_real_one_does(books: Books, kind: str) -> None:
    referral_id, friend = await signed_up(books)
    now = await books.clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    news = await books.report(subscription(*of, status="trialing" if kind == "trial" else "active"))
    if kind in ("trial", "coupon"):
        news += await books.report(invoice_paid(*of, amount_paid=0))
    elif kind == "balance":
        news += await books.report(invoice_paid(*of, amount_paid=0, total=2900))
    elif kind == "no subscription":
        one_off = invoice_paid(*of)
        one_off["data"]["object"]["parent"] = None
        news += await books.report(one_off)
    assert not any(each.payments for each in news)
    result = await books.credit(referral_id)
    assert (result.stage, result.plan, result.minutes, result.expires_at) == (Stage.SIGNED_UP, None, 0, None)
    assert [step.stage for step in await books.story(referral_id)] == [Stage.SIGNED_UP]
    (told,) = await books.report(invoice_paid(*of, reason="subscription_cycle"))
    assert [waiting.referral_id for waiting in told.payments] == [referral_id]
    assert (await books.credit(referral_id)).minutes == 90


async def test_rule_14_the_earliest_payment_known_when_credited_decides(books: Books) -> None:
    referral_id, friend = await signed_up(books)
    now = await books.clock.now()
    at = {plan: now + timedelta(hours=hours) for plan, hours in {"power": 2, "starter": 1, "pro": 3}.items()}
    for plan, paid_at in at.items():
        of = (friend.customer_id, friend.subscription_id, paid_at, paid_at + MONTH)
        await books.report(subscription(*of, plan=plan), invoice_paid(*of, plan=plan))
    assert (await books.credit(referral_id)).plan == "starter"
    earlier = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    await books.report(invoice_paid(*earlier, plan="power"))
    assert (await books.credit(referral_id)).plan == "starter"
    ((invoice,),) = await books.rows("SELECT qualifying_invoice FROM referral WHERE referral_id = :id", id=referral_id)
    ((paid_at,),) = await books.rows("SELECT paid_at FROM paid_period WHERE invoice_id = :id", id=invoice)
    assert paid_at == at["starter"].replace(microsecond=0)


async def test_rule_14_the_plan_is_that_of_the_line_that_is_no_proration(books: Books) -> None:
    referral_id, friend = await signed_up(books)
    now = await books.clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    for plan in ("starter", "pro", "power"):
        await books.report(subscription(*of, plan=plan))
    lines = [
        line("power", now, now + MONTH, 7900, proration=True),
        line("starter", now, now + MONTH, 900),
        line("pro", now, now + MONTH, 2900),
    ]
    await books.report(invoice_paid(*of, lines=lines))
    assert (await books.credit(referral_id)).plan == "pro"


async def test_rule_14_a_year_brings_one_month_s_minutes_for_a_month(books: Books) -> None:
    referral_id, friend = await signed_up(books)
    now = await books.clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + timedelta(days=365))
    await books.report(subscription(*of, lookup_key="pro_yearly"), invoice_paid(*of, amount_paid=29000))
    result = await books.credit(referral_id)
    assert result.minutes == 90
    assert result.credited_at is not None
    assert result.expires_at is not None
    assert result.expires_at[Role.REFEREE] == result.credited_at + 31 * DAY


async def test_rule_14_an_unknown_price_waits_visibly_for_its_plan(books: Books) -> None:
    referral_id, friend = await signed_up(books)
    now = await books.clock.now()
    of = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    # The invoice comes first: of the price on it nothing is known yet.
    (told,) = await books.report(invoice_paid(*of, plan="starter"))
    assert told.payments
    result = await books.credit(referral_id)
    assert result.stage is Stage.SIGNED_UP
    assert result.needs_attention is not None
    assert "price_starter" in result.needs_attention
    assert (await books.referral(referral_id)).needs_attention == result.needs_attention
    (told,) = await books.report(subscription(*of, plan="starter"))
    assert [waiting.referral_id for waiting in told.payments] == [referral_id]
    assert (await books.credit(referral_id)).minutes == 22
    assert (await books.referral(referral_id)).needs_attention is None


# Rules 7, 8 and 9: until when


async def test_rule_7_each_side_s_grant_ends_with_its_own_cycle(books: Books) -> None:
    referrer, friend = await books.subscriber(started=20 * DAY), await books.someone()
    now = await books.clock.now()
    await books.credited(referrer, friend)
    (theirs,), (own,) = await books.lots(referrer), await books.lots(friend)
    assert abs(theirs.expires_at - (now + 10 * DAY)) < timedelta(seconds=5)
    assert abs(own.expires_at - (now + 30 * DAY)) < timedelta(seconds=5)


async def test_rule_8_a_referrer_without_a_cycle_has_31_days(books: Books, clock: Clock) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    await books.link(referrer)
    clock.advance(timedelta(days=100))
    friend.created_at = await clock.now()
    await books.credited(referrer, friend)
    (theirs,) = await books.lots(referrer)
    assert theirs.expires_at == theirs.credited_at + 31 * DAY


async def test_rule_7_what_is_due_later_is_left_and_told_when(books: Books, clock: Clock) -> None:
    referrer, friend = await books.subscriber(started=20 * DAY), await books.someone()
    referral_id = await books.credited(referrer, friend)
    early = await books.expire(referral_id)
    assert early.stage is Stage.CREDITED
    assert early.expired_minutes == {}
    for role, days in {Role.REFERRER: 10, Role.REFEREE: 30}.items():
        ends, due_in = early.open[role]
        assert ends == (await books.referral(referral_id)).expires_at[role]
        assert timedelta(0) <= days * DAY - due_in < timedelta(seconds=10)
    clock.advance(11 * DAY)
    half = await books.expire(referral_id)
    assert (half.stage, half.expired_minutes, set(half.open)) == (Stage.CREDITED, {Role.REFERRER: 90}, {Role.REFEREE})
    clock.advance(20 * DAY)
    both = await books.expire(referral_id)
    assert (both.stage, both.open) == (Stage.SETTLED, {})
    assert both.expired_minutes == {Role.REFERRER: 90, Role.REFEREE: 90}
    assert await books.expire(referral_id) == both
    assert [step.stage for step in await books.story(referral_id)] == [Stage.SIGNED_UP, Stage.CREDITED, Stage.SETTLED]
    assert await books.rows("SELECT kind, delta FROM entry ORDER BY entry_id") == [
        ("credit", 90),
        ("credit", 90),
        ("expiry", -90),
        ("expiry", -90),
    ]


async def test_rule_7_only_what_is_unused_expires(books: Books, clock: Clock, database_urls: DatabaseUrls) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.credited(referrer, friend)
    lot, account = f"{referral_id}-referee", friend.account_id
    Hand(database_urls.app, {"lot": lot, "account": account}).run(
        "WITH spent AS (UPDATE grant_lot SET remaining = 0 WHERE grant_id = %(lot)s)"
        " INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)"
        " VALUES (%(lot)s, %(account)s, 'usage', -90, 'usage 1', now())"
    )
    assert [lot.state for lot in await books.lots(friend)] == ["used"]
    clock.advance(timedelta(days=31))
    result = await books.expire(referral_id)
    assert result.expired_minutes == {Role.REFERRER: 90, Role.REFEREE: 0}
    assert result.stage is Stage.SETTLED


async def test_rule_7_a_grant_past_its_end_is_over_even_if_its_sweep_is_late(books: Books, clock: Clock) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    now = await clock.now()
    referral_id = await books.credited(referrer, friend, length=10 * DAY)
    (lot,) = await books.lots(friend)
    assert (lot.state, lot.remaining, lot.expired) == ("active", 90, 0)
    clock.advance(timedelta(days=10, minutes=1))
    (late,) = await books.lots(friend)
    assert (late.state, late.remaining, late.expired) == ("expired", 0, 90)
    summary = await books.summary(friend)
    assert (summary.bonus_minutes_available, summary.next_expiry) == (0, None)
    # A period that becomes known only now would have moved the end; minutes that were shown as gone stay gone.
    longer = subscription(friend.customer_id, friend.subscription_id, now, now + 20 * DAY)
    (told,) = await books.report(longer)
    assert told.moved == ()
    assert (await books.expire(referral_id)).expired_minutes == {Role.REFEREE: 90}
    (swept,) = await books.lots(friend)
    assert swept == late


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        pytest.param(12, 12, id="a longer period"),
        pytest.param(31, 31, id="up to the cap"),
        pytest.param(60, 31, id="beyond the cap"),
        pytest.param(9, 10, id="a shorter period"),
    ],
)
async def test_rule_9_a_moved_period_moves_the_grant_and_never_to_an_earlier_end(
    books: Books, end: int, expected: int
) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    now = (await books.clock.now()).replace(microsecond=0)
    referral_id = await books.credited(referrer, friend, length=10 * DAY)
    (before,) = await books.lots(friend)
    moved = subscription(
        friend.customer_id,
        friend.subscription_id,
        now + 2 * DAY,
        now + end * DAY,
        type_="customer.subscription.updated",
    )
    (news,) = await books.report(moved)
    (after,) = await books.lots(friend)
    assert abs(after.expires_at - (before.credited_at + expected * DAY)) < timedelta(seconds=5)
    if expected > 10:
        ((referral, role, expires_at),) = [(told.referral_id, told.role, told.expires_at) for told in news.moved]
        assert (referral, role, expires_at) == (referral_id, Role.REFEREE, after.expires_at)
    else:
        assert news.moved == ()
        assert after == before


async def test_rule_9_a_renewal_moves_nothing(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    await books.credited(referrer, friend, length=10 * DAY)
    before = await books.lots(friend)
    # Where Stripe says that the first period ends, to the second: the clock may have gone on by one since.
    end = before[0].expires_at
    news = await books.report(*await books.pay(friend, start=end, length=10 * DAY))
    assert not any(each.moved for each in news)
    assert await books.lots(friend) == before


async def test_rule_9_a_customer_linked_later_brings_the_period_that_moves_the_grant(books: Books) -> None:
    referrer, friend = await books.subscriber(started=25 * DAY), await books.someone()
    referral_id = await books.credited(referrer, friend)
    now = await books.clock.now()
    await books.report(subscription("cus_second", "sub_second", now - DAY, now + 20 * DAY))
    (news,) = await books.report(checkout_completed("cus_second", referrer.account_id))
    assert [(moved.referral_id, moved.role) for moved in news.moved] == [(referral_id, Role.REFERRER)]
    (lot,) = await books.lots(referrer)
    assert abs(lot.expires_at - (now + 20 * DAY)) < timedelta(seconds=5)


# What is read


async def test_the_signups_of_a_referrer_come_in_pages_the_newest_first(books: Books) -> None:
    referrer = await books.subscriber()
    ids = [await books.sign_up(referrer, await books.someone()) for _ in range(4)]
    click = await books.click(referrer)
    assert await refused(books, referrer, referrer, click)
    # Rule 22: it brings nothing, and is told of all the same.
    ids.append(click.referral_id)
    seen: list[str] = []
    after: tuple[datetime, str] | None = None
    sizes = []
    while True:
        async with books.database.transaction() as transaction:
            page = await queries.referrals_of(transaction, referrer.account_id, 2, after)
        seen += [shown.referral_id for shown in page.referrals]
        sizes.append(len(page.referrals))
        after = page.next
        if after is None:
            break
    assert seen == ids[::-1]
    assert sizes == [2, 2, 1]


async def test_clicks_are_counted_by_channel_and_day(books: Books) -> None:
    referrer = await books.subscriber()
    link = await books.link(referrer)
    today = datetime.now(UTC).date()
    for channel, day in (("link", today), ("link", today), ("qr", today), ("link", today - DAY)):
        async with books.database.transaction() as transaction:
            await accounts.link_followed(transaction, link.code, channel, day)
    assert sorted(await books.rows("SELECT channel, clicks FROM click_count")) == [("link", 1), ("link", 2), ("qr", 1)]
    assert (await books.summary(referrer)).clicks == 4


async def test_the_patience_of_a_click_ends_with_the_click(
    books: Books, database_urls: DatabaseUrls, owner: psycopg.Connection
) -> None:
    link, today = await books.link(await books.subscriber()), datetime.now(UTC).date()
    database = Database(database_urls.app, pool_size=1)
    async with database.statement() as statement:
        assert await accounts.link_followed(statement, link.code, "qr", today) == link
    with owner.transaction():
        owner.execute("UPDATE click_count SET clicks = clicks")
        async with database.statement() as statement:
            with pytest.raises(DBAPIError, match="LockNotAvailable"):
                await accounts.link_followed(statement, link.code, "qr", today)
            assert await at_once(statement, ("SHOW lock_timeout", {})) == [[("0",)]]
    await database.close()
    assert await books.rows("SELECT clicks FROM click_count") == [(1,)]


async def test_a_window_of_another_length_is_kept_with_the_referral(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    click = await books.click(referrer, window=timedelta(seconds=30))
    reservation = await books.reserve(click, referrer, friend)
    assert reservation.window == AttributionWindow(click.window.clicked_at, timedelta(seconds=30))


async def test_rule_10_a_payment_before_the_click_is_found_also_when_its_customer_is_linked_late(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    await books.pay(friend, start=await books.clock.now() - timedelta(days=300))
    referral_id = await books.sign_up(referrer, friend)
    assert (await books.put(friend, linked=True)).payments
    refused = await books.credit(referral_id)
    assert (refused.stage, refused.reason) == (Stage.REFUSED, Refusal.PAID_BEFORE.words)
    assert (await books.summary(referrer)).invited == 0


async def test_rule_10_a_customer_of_another_account_linked_late_is_news_to_the_run(books: Books) -> None:
    referrer, friend, owner = await books.subscriber(), await books.someone(), await books.someone("owner")
    await books.put(owner, linked=True)
    referral_id = await books.sign_up(referrer, friend)
    friend.customer_id = owner.customer_id
    news = await books.put(friend, linked=True)
    assert [waiting.referral_id for waiting in news.payments] == [referral_id]


async def test_a_customer_named_for_no_known_account_is_the_account_of_whoever_the_backend_says(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    await books.report(checkout_completed(friend.customer_id, "cart-123"))
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    await books.pay(friend)
    assert (await books.credit(referral_id)).stage is Stage.CREDITED


async def test_rule_7_a_line_that_gives_money_back_makes_no_cycle(books: Books) -> None:
    await books.subscriber()  # so that the price of Pro is known
    member, now = await books.someone(), (await books.clock.now()).replace(microsecond=0)
    await books.put(member, linked=True)
    month, year = now + timedelta(days=30), now + timedelta(days=200)
    lines = [line("pro", now, year, -9000, proration=True), line("power", now, month, 12000)]
    await books.pay(member, plan="power", start=now)
    await books.report(invoice_paid(member.customer_id, member.subscription_id, now, month, lines=lines))
    assert (await books.cycle(member)).end == month


async def test_rule_14_a_payment_refunded_in_part_is_held_and_shows_why(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    _, paid = await books.pay(friend)
    payment = invoice_payment_paid(paid["data"]["object"]["id"], await books.clock.now())
    intent = payment["data"]["object"]["payment"]["payment_intent"]
    await books.report(payment, charge_refunded(intent, 100, customer=friend.customer_id))
    held = await books.credit(referral_id)
    assert (held.stage, held.review_reasons) == (Stage.IN_REVIEW, (Doubt.REFUNDED_IN_PART,))
    shown = await books.referral(referral_id)
    assert shown.needs_attention
    assert shown.review_reasons == ["refunded-in-part"]
    assert await books.lots(friend) == []


# What is sent together


def naming(account_id: str, name: str) -> Question:
    """Gives an account a first name."""
    return "UPDATE account SET first_name = %(name)s WHERE account_id = %(account)s", {
        "name": name,
        "account": account_id,
    }


async def name_of(books: Books, member: Member) -> str | None:
    """An account's first name, as everybody can see it."""
    ((name,),) = await books.rows("SELECT first_name FROM account WHERE account_id = :id", id=member.account_id)
    return str(name) if name is not None else None


async def carry_out(books: Books, *journeys: list[Question], last: list[Question]) -> None:
    """Some journeys in one transaction, which is committed with the last of them."""
    async with books.database.transaction() as transaction:
        for each in journeys:
            await at_once(transaction, *each)
        await at_once(transaction, *last, commit=True)


async def test_what_is_committed_with_its_last_journey_is_there_whatever_follows(books: Books) -> None:
    member = await books.someone()
    await books.put(member, linked=False)

    async def ask_too_late() -> None:
        async with books.database.transaction() as transaction:
            await at_once(transaction, naming(member.account_id, "before"))
            await at_once(transaction, naming(member.account_id, "last"), commit=True)
            assert await name_of(books, member) == "last"
            await at_once(transaction, naming(member.account_id, "too late"))

    with pytest.raises(RuntimeError, match="the transaction is over"):
        await ask_too_late()
    assert await name_of(books, member) == "last"


async def test_nothing_is_committed_of_a_last_journey_in_which_anything_fails(books: Books) -> None:
    member = await books.someone()
    await books.put(member, linked=False)
    before, last = naming(member.account_id, "before"), naming(member.account_id, "last")
    for failing in ([last, ("SELECT 1 / 0", {})], [("SELECT 1 / 0", {}), last]):
        with pytest.raises(DBAPIError):
            await carry_out(books, [before], last=failing)
        assert await name_of(books, member) is None
    await carry_out(books, [before], last=[last])
    assert await name_of(books, member) == "last"
