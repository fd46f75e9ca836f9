"""What the backend is told, as it is written down: each thing once, in the transaction in which it happened."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import select

from ledger import outbox, referrals, usage
from ledger.database import Database
from ledger.measures import measures
from ledger.tables import outbox as messages
from program.cycles import LONGEST_BONUS
from program.notifications import KEPT, TOO_OLD, Kind
from program.plans import Plans
from program.referral import Role, Stage
from program.signals import SignalPolicy
from tests.stripe_events import invoice_paid, subscription
from tests.support import MONTH, Books, Clock, DatabaseUrls, Member

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


async def told(books: Books, kind: str | None = None) -> list[dict[str, Any]]:
    """What the backend is told, in order; each with its id, type and time beside its particulars."""
    async with books.database.transaction() as transaction:
        rows = await transaction.execute(select(messages).order_by(messages.c.created_at, messages.c.message_id))
        return [
            {"id": row.message_id, "type": row.type, "at": row.created_at, **row.data}
            for row in rows
            if kind in (None, row.type)
        ]


async def kinds(books: Books) -> Counter[str]:
    return Counter(message["type"] for message in await told(books))


async def remind(books: Books) -> None:
    """What is done every day."""
    async with books.database.transaction() as transaction:
        ending = await outbox.ending_soon(transaction, await books.clock.now(), 100)
    for lot in ending:
        async with books.database.transaction() as transaction:
            await outbox.remind_owner(transaction, lot)


async def both(books: Books) -> tuple[Member, Member, str]:
    """A referrer and a friend who have just been credited, with most of a month left."""
    referrer, friend = await books.subscriber(started=DAY), await books.someone()
    return referrer, friend, await books.credited(referrer, friend)


async def test_rule_6_a_credit_is_told_to_both_sides_once(books: Books) -> None:
    referrer, friend, referral_id = await both(books)
    await books.credit(referral_id)
    await books.attribute(referral_id)

    assert await kinds(books) == {"referral.signed_up": 1, "bonus.credited": 2}
    ends = (await books.referral(referral_id)).expires_at
    given = {message["role"]: message for message in await told(books, "bonus.credited")}
    for role, member in ((Role.REFERRER, referrer), (Role.REFEREE, friend)):
        message = given[role]
        assert message["account_id"] == member.account_id
        assert (message["minutes"], message["remaining"], message["plan"]) == (90, 90, "pro")
        assert datetime.fromisoformat(message["expires_at"]) == ends[role]
        assert (message["referral_id"], message["grant_id"]) == (referral_id, f"{referral_id}-{role}")
        assert (message["referrer_account_id"], message["referee_account_id"]) == (
            referrer.account_id,
            friend.account_id,
        )


async def test_rule_6_what_is_undone_is_not_told(books: Books) -> None:
    referral_id = await books.sign_up(await books.subscriber(), friend := await books.someone())
    await books.put(friend, linked=True)
    await books.pay(friend)

    async def fails() -> None:
        async with books.database.transaction() as transaction:
            await referrals.credit_both(transaction, referral_id, books.plans, SignalPolicy())
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await fails()

    assert await kinds(books) == {"referral.signed_up": 1}
    await books.credit(referral_id)
    assert await kinds(books) == {"referral.signed_up": 1, "bonus.credited": 2}


async def test_rule_6_credits_at_the_same_time_are_told_once(books: Books) -> None:
    referral_id = await books.sign_up(await books.subscriber(started=DAY), friend := await books.someone())
    await books.put(friend, linked=True)
    await books.pay(friend)

    await asyncio.gather(*(books.credit(referral_id) for _ in range(6)))

    assert (await kinds(books))["bonus.credited"] == 2


async def test_rule_22_a_refusal_is_told_with_its_words(books: Books) -> None:
    referrer = await books.subscriber()
    old = await books.someone(age=DAY)
    referral_id = await books.sign_up(referrer, old)
    await books.attribute(referral_id)

    [refused] = await told(books)
    assert (refused["type"], refused["stage"]) == ("referral.refused", "refused")
    assert refused["reason"] == (await books.referral(referral_id)).reason
    assert len(refused["reason"].split()) > 3
    assert refused["referee_account_id"] == old.account_id


async def test_rule_22_a_refusal_after_the_signup_was_told_is_told_too(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    friend.email = referrer.email
    await books.put(friend)

    assert (await books.credit(referral_id)).stage == "refused"
    assert [message["type"] for message in await told(books)] == ["referral.signed_up", "referral.refused"]


async def test_rule_15_one_that_lapses_was_never_told_of(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    click = await books.click(referrer, at=await books.clock.now() - 2 * DAY, window=DAY)
    await books.reserve(click, referrer, friend)
    await books.attribute(click.referral_id)

    assert (await books.referral(click.referral_id)).stage == "lapsed"
    assert await told(books) == []


async def test_rule_7_an_expiry_is_told_with_what_expired_even_if_that_is_nothing(books: Books) -> None:
    referrer, friend, referral_id = await both(books)
    async with books.database.transaction() as transaction:
        await usage.spend(transaction, referrer.account_id, "all", 90)
        await usage.spend(transaction, friend.account_id, "some", 60)
    books.clock.advance(LONGEST_BONUS)
    await asyncio.gather(*(books.expire(referral_id) for _ in range(4)))

    over = {message["role"]: message for message in await told(books, "bonus.expired")}
    assert len(await told(books, "bonus.expired")) == 2
    assert (over["referrer"]["expired_minutes"], over["referee"]["expired_minutes"]) == (0, 30)
    assert {message["remaining"] for message in over.values()} == {0}


async def test_rule_7_each_side_is_reminded_once_three_days_ahead_of_its_own_end(books: Books) -> None:
    referrer, friend, referral_id = await both(books)
    ends = (await books.referral(referral_id)).expires_at
    assert ends[Role.REFEREE] - ends[Role.REFERRER] > 12 * HOUR
    books.clock.advance(ends[Role.REFERRER] - await books.clock.now() - 3 * DAY - HOUR)
    await remind(books)
    assert await told(books, "bonus.expiring") == []

    books.clock.advance(2 * HOUR)
    await asyncio.gather(*(remind(books) for _ in range(4)))
    [first] = await told(books, "bonus.expiring")
    assert (first["account_id"], first["remaining"]) == (referrer.account_id, 90)
    assert datetime.fromisoformat(first["expires_at"]) == ends[Role.REFERRER]

    books.clock.advance(DAY)
    await remind(books)
    assert [each["account_id"] for each in await told(books, "bonus.expiring")] == [
        referrer.account_id,
        friend.account_id,
    ]


async def test_rule_7_a_bonus_with_less_than_three_days_left_is_told_to_expire_at_the_credit(books: Books) -> None:
    referrer = await books.subscriber(started=MONTH - 2 * DAY)
    friend = await books.someone()
    referral_id = await books.credited(referrer, friend)

    [soon] = await told(books, "bonus.expiring")
    assert soon["account_id"] == referrer.account_id
    assert soon["at"] == (await books.referral(referral_id)).credited_at
    await remind(books)
    assert len(await told(books, "bonus.expiring")) == 1


async def test_rule_9_an_expiry_that_moved_after_the_reminder_is_reminded_of_again_when_it_nears(books: Books) -> None:
    referrer = await books.subscriber(started=MONTH - 2 * DAY)
    referral_id = await books.credited(referrer, await books.someone())
    start = (await books.clock.now()).replace(microsecond=0)
    await books.report(
        subscription(referrer.customer_id, referrer.subscription_id, start, start + 10 * DAY),
        invoice_paid(referrer.customer_id, referrer.subscription_id, start, start + 10 * DAY),
    )
    await remind(books)
    assert len(await told(books, "bonus.expiring")) == 1

    books.clock.advance(8 * DAY)
    await remind(books)
    await remind(books)
    first, second = await told(books, "bonus.expiring")
    assert first["id"] != second["id"]
    assert datetime.fromisoformat(second["expires_at"]) == start + 10 * DAY
    assert (await books.referral(referral_id)).expires_at[Role.REFERRER] == start + 10 * DAY


async def test_rule_21_nobody_is_reminded_of_minutes_that_were_used(books: Books) -> None:
    _, friend, referral_id = await both(books)
    async with books.database.transaction() as transaction:
        await usage.spend(transaction, friend.account_id, "all", 90)
    ends = (await books.referral(referral_id)).expires_at
    books.clock.advance(max(ends.values()) - await books.clock.now() - HOUR)
    await remind(books)

    assert friend.account_id not in [each["account_id"] for each in await told(books, "bonus.expiring")]


async def test_rule_23_nobody_is_reminded_of_what_an_erased_account_cannot_use(books: Books) -> None:
    referrer, friend = await books.subscriber(started=MONTH - 2 * DAY), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.erase(referrer)
    await books.put(friend, linked=True)
    await books.pay(friend, length=2 * DAY)
    assert (await books.credit(referral_id)).stage is Stage.CREDITED
    await remind(books)

    assert {each["account_id"] for each in await told(books, "bonus.credited")} == {
        referrer.account_id,
        friend.account_id,
    }
    assert [each["account_id"] for each in await told(books, "bonus.expiring")] == [friend.account_id]


async def test_every_id_follows_from_what_happened_and_none_is_given_twice(books: Books) -> None:
    _, _, referral_id = await both(books)
    before = await told(books)
    assert len({message["id"] for message in before}) == len(before)
    assert all(re.fullmatch(r"msg_[0-9a-f]{32}", message["id"]) for message in before)
    async with books.database.transaction() as transaction:
        row = (await transaction.execute(select(messages).where(messages.c.type == "referral.signed_up"))).one()
        await outbox.record(transaction, Kind.REFERRAL_SIGNED_UP, referral_id, None, row.created_at, {})
    assert await told(books) == before


async def test_rule_24_nothing_personal_is_told(books: Books) -> None:
    referrer, friend, referral_id = await both(books)
    books.clock.advance(LONGEST_BONUS)
    await books.expire(referral_id)
    text = str(await told(books))

    for member in (referrer, friend):
        for personal in (member.email, member.customer_id, member.subscription_id):
            assert personal not in text


async def test_who_commits_is_told_what_was_written(database_urls: DatabaseUrls, plans: Plans, clock: Clock) -> None:
    announced: list[Sequence[str]] = []
    database = Database(database_urls.app, offset=clock.offset, announce=announced.append)
    books = Books(database, plans, clock)
    try:
        await both(books)
        assert [len(ids) for ids in announced] == [1, 2]
        assert {each for ids in announced for each in ids} == {message["id"] for message in await told(books)}
    finally:
        await database.close()


async def test_the_sweep_takes_what_nobody_began_to_deliver_and_each_message_goes_to_one_sweep(books: Books) -> None:
    await both(books)

    async def take() -> list[str]:
        async with books.database.transaction() as transaction:
            return await outbox.take_due(transaction, 2)

    assert await take() == [], "whoever wrote them may be about to deliver them"
    books.clock.advance(timedelta(minutes=1))
    taken = await asyncio.gather(*(take() for _ in range(4)))
    assert sorted(each for some in taken for each in some) == sorted(message["id"] for message in await told(books))


async def test_a_message_that_nobody_began_to_deliver_for_days_is_never_delivered(books: Books) -> None:
    await both(books)
    books.clock.advance(TOO_OLD + HOUR)
    async with books.database.transaction() as transaction:
        assert await outbox.take_due(transaction, 100) == []
        await outbox.tidy(transaction, 100)
        assert (await measures(transaction)).messages == 0
    assert len(await told(books)) == 3, "it can still be sent by hand"


async def test_what_is_over_is_thrown_away_after_a_while_in_small_portions(books: Books) -> None:
    await both(books)
    ids = [message["id"] for message in await told(books)]
    async with books.database.transaction() as transaction:
        for message_id in ids[:2]:
            await outbox.begin(transaction, message_id, ["backend"])
            await outbox.delivered(transaction, message_id, "backend")
            await outbox.end(transaction, message_id, {})
    books.clock.advance(KEPT - HOUR)
    async with books.database.transaction() as transaction:
        await outbox.tidy(transaction, 1)
    assert len(await told(books)) == 3
    books.clock.advance(2 * HOUR)
    left = []
    for _ in range(3):
        async with books.database.transaction() as transaction:
            await outbox.tidy(transaction, 1)
        left.append(len(await told(books)))
    assert left == [2, 1, 0]
    assert await books.rows("SELECT * FROM delivery") == []


async def test_the_application_cannot_change_what_was_told(books: Books, database_urls: DatabaseUrls) -> None:
    await both(books)
    with psycopg.connect(database_urls.app.replace("+psycopg", "")) as connection:
        for change in ("data = '{}'", "type = 'bonus.voided'", "created_at = now()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(f"UPDATE outbox SET {change}")  # noqa: S608
