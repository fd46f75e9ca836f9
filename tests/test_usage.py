"""Spending bonus minutes on the ledger (rule 21): exactly once, never below zero, never from an expired lot."""

import asyncio
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import text

from ledger import usage
from ledger.accounts import UnknownAccountError
from ledger.usage import Usage, UsageConflictError
from tests.support import Books, Member


async def spend(books: Books, member: Member, usage_id: str, minutes: int) -> Usage:
    async with books.database.transaction() as transaction:
        return await usage.spend(transaction, member.account_id, usage_id, minutes)


async def test_rule_21_the_bonus_covers_what_it_can_and_the_plan_the_rest(books: Books) -> None:
    referrer, friend = await books.subscriber("referrer"), await books.someone()
    await books.credited(referrer, friend, plan="pro")
    assert await spend(books, friend, "call-1", 60) == Usage("call-1", 60, 0, 30)
    assert await spend(books, friend, "call-2", 60) == Usage("call-2", 30, 30, 0)
    assert await spend(books, friend, "call-3", 1) == Usage("call-3", 0, 1, 0)
    assert [(lot.remaining, lot.state) for lot in await books.lots(friend)] == [(0, "used")]
    assert [lot.remaining for lot in await books.lots(referrer)] == [90]


async def test_rule_21_the_soonest_to_expire_is_used_first(books: Books) -> None:
    referrer = await books.subscriber("referrer", started=timedelta(days=29))
    await books.link(referrer)
    # In no cycle any more, so that each bonus ends 31 days after its own credit.
    books.clock.advance(timedelta(days=2))
    await books.credited(referrer, await books.someone(), plan="starter")
    books.clock.advance(timedelta(days=1))
    await books.credited(referrer, await books.someone(), plan="pro")
    by_end = sorted(await books.lots(referrer), key=lambda lot: lot.expires_at)
    assert [lot.minutes for lot in by_end] == [22, 90]
    assert (await spend(books, referrer, "call", 30)).from_bonus == 30
    assert [lot.remaining for lot in sorted(await books.lots(referrer), key=lambda lot: lot.expires_at)] == [0, 82]


async def test_rule_21_a_use_of_fewer_minutes_than_there_are_bonuses_takes_the_soonest_to_expire(books: Books) -> None:
    referrer = await books.subscriber("referrer", started=timedelta(days=29))
    await books.link(referrer)
    # In no cycle any more, so that each bonus ends 31 days after its own credit.
    books.clock.advance(timedelta(days=2))
    await books.credited(referrer, await books.someone(), plan="starter")
    books.clock.advance(timedelta(days=1))
    await books.credited(referrer, await books.someone(), plan="pro")
    await spend(books, referrer, "call", 1)
    by_end = sorted(await books.lots(referrer), key=lambda lot: lot.expires_at)
    assert [(lot.minutes, lot.remaining) for lot in by_end] == [(22, 21), (90, 90)]


async def test_rule_21_the_same_id_again_has_the_same_answer_and_another_body_is_refused(books: Books) -> None:
    referrer, friend = await books.subscriber("referrer"), await books.someone()
    await books.credited(referrer, friend)
    told = await spend(books, friend, "call", 40)
    await spend(books, friend, "other call", 10)
    assert await spend(books, friend, "call", 40) == told
    with pytest.raises(UsageConflictError):
        await spend(books, friend, "call", 41)
    # The id belongs to its account: another account's use of it is another use.
    assert (await spend(books, referrer, "call", 5)).from_bonus == 5
    assert [lot.remaining for lot in await books.lots(friend)] == [40]


async def test_rule_21_concurrent_calls_of_one_account_never_spend_a_minute_twice(books: Books) -> None:
    referrer, friend = await books.subscriber("referrer"), await books.someone()
    await books.credited(referrer, friend)
    answers = await asyncio.gather(*(spend(books, friend, f"call-{number}", 7) for number in range(20)))
    assert sum(answer.from_bonus for answer in answers) == 90
    assert sum(answer.from_plan for answer in answers) == 20 * 7 - 90
    assert all(answer.from_bonus + answer.from_plan == 7 for answer in answers)
    assert [lot.remaining for lot in await books.lots(friend)] == [0]


async def test_rule_21_one_call_told_many_times_at_once_is_recorded_once(books: Books) -> None:
    referrer, friend = await books.subscriber("referrer"), await books.someone()
    await books.credited(referrer, friend)
    answers = await asyncio.gather(*(spend(books, friend, "call", 50) for _ in range(20)))
    assert set(answers) == {Usage("call", 50, 0, 40)}


async def test_rule_7_nothing_is_spent_of_a_lot_that_is_due_although_its_sweep_is_late(books: Books) -> None:
    referrer, friend = await books.subscriber("referrer"), await books.someone()
    referral_id = await books.credited(referrer, friend)
    books.clock.advance(timedelta(days=40))
    assert await spend(books, friend, "late call", 10) == Usage("late call", 0, 10, 0)
    report = await books.expire(referral_id)
    assert set(report.expired_minutes.values()) == {90}


async def test_rule_21_a_use_that_races_with_the_expiry_is_before_it_or_after_it(books: Books) -> None:
    for _ in range(5):
        referrer, friend = await books.subscriber("referrer"), await books.someone()
        referral_id = await books.credited(referrer, friend, length=timedelta(seconds=1))
        used, _, _ = await asyncio.gather(
            spend(books, friend, "call", 30), books.expire(referral_id), spend(books, friend, "call too", 30)
        )
        await books.expire(referral_id)
        rows = await books.rows(
            "SELECT sum(delta), min(remaining) FROM entry JOIN grant_lot USING (grant_id) WHERE entry.account_id = :id",
            id=friend.account_id,
        )
        assert rows[0][0] == rows[0][1]
        assert used.from_bonus + used.from_plan == 30


async def test_rule_21_an_account_that_nobody_reported_has_nothing_to_spend(books: Books) -> None:
    async with books.database.transaction() as transaction:
        with pytest.raises(UnknownAccountError):
            await usage.spend(transaction, "nobody", "call", 1)


@pytest.mark.parametrize(
    "statement", ["UPDATE operation SET minutes = 1", "DELETE FROM operation", "TRUNCATE operation"]
)
async def test_a_use_that_was_recorded_stays_recorded(
    books: Books, owner: "psycopg.Connection[tuple[object, ...]]", statement: str
) -> None:
    member = await books.subscriber("member")
    await spend(books, member, "call", 3)
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        owner.execute(statement)


async def test_no_lot_goes_below_zero_even_when_the_code_forgets_to_look(books: Books) -> None:
    referrer, friend = await books.subscriber("referrer"), await books.someone()
    await books.credited(referrer, friend)
    with pytest.raises(Exception, match="remaining"):
        async with books.database.transaction() as transaction:
            await transaction.execute(text("UPDATE grant_lot SET remaining = remaining - 91"))
