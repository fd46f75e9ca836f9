"""What Prometheus is told: each thing once, where it was decided, and what waits, at any moment."""

import asyncio
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from ledger import outbox, referrals
from ledger.counting import Add, Counting
from ledger.database import Database
from ledger.happenings import What
from ledger.measures import _ATTENTION, _LAGS, MOST, measures
from program.doubts import Action
from program.referral import Stage
from starter.looks import Looks
from tests.conftest import free_port
from tests.http_support import Starter, paid, person
from tests.support import Books, DatabaseUrls, until

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


class Tally:
    """A meter that can be read."""

    def __init__(self) -> None:
        self.numbers = Counter[str]()
        self.times: list[float] = []

    def counter(self, name: str, description: str, labels: Sequence[str]) -> Add:
        assert description.endswith(".")

        def add(number: float, given: Mapping[str, str]) -> None:
            assert sorted(given) == sorted(labels)
            self.numbers[" ".join([name, *(given[label] for label in labels)])] += int(number)

        return add

    def histogram(self, name: str, description: str) -> Add:
        assert name == What.CREDITED_AFTER
        assert description.endswith(".")
        return lambda number, _: self.times.append(number)

    @property
    def counted(self) -> dict[str, int]:
        """What is above zero."""
        return {name: number for name, number in sorted(self.numbers.items()) if number}


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
async def counting(books: Books, tally: Tally, database_urls: DatabaseUrls) -> Any:
    """The ledger alone, and it counts."""
    count = Counting(tally, [plan.id for plan in books.plans], ["backend"])
    books.database = Database(database_urls.app, offset=books.clock.offset, count=count)
    yield books
    await books.database.close()


async def test_a_whole_referral_is_counted_once_however_often_its_steps_are_taken(
    counting: Books, tally: Tally
) -> None:
    referral_id = await counting.credited(await counting.subscriber(), await counting.someone())
    for _ in range(3):
        await counting.attribute(referral_id)
        await counting.credit(referral_id)
    credited = {
        "referrals_signups_decided_total signed_up": 1,
        "referrals_credits_total pro": 1,
        "referrals_minutes_credited_total referrer": 90,
        "referrals_minutes_credited_total referee": 90,
    }
    assert tally.counted == credited
    counting.clock.advance(timedelta(days=32))
    for _ in range(3):
        await counting.expire(referral_id)
    assert tally.counted == credited | {
        "referrals_minutes_expired_total referrer": 90,
        "referrals_minutes_expired_total referee": 90,
        "referrals_settled_total": 1,
    }


async def test_what_is_undone_is_not_counted(counting: Books, tally: Tally) -> None:
    referrer, friend = await counting.subscriber(), await counting.someone()
    referral_id = await counting.sign_up(referrer, friend)
    await counting.put(friend, linked=True)
    await counting.pay(friend)
    before = tally.counted

    async def credit_in_vain() -> None:
        async with counting.database.transaction() as transaction:
            await referrals.credit_both(transaction, referral_id, counting.plans, counting.policy)
            await transaction.execute(text("SELECT 1 / 0"))

    with pytest.raises(SQLAlchemyError):
        await credit_in_vain()
    assert tally.counted == before
    assert tally.times == []


async def test_refusals_are_counted_by_reason(counting: Books, tally: Tally) -> None:
    referrer = await counting.subscriber()
    await counting.sign_up(referrer, replace(await counting.someone(), email=referrer.email))
    await counting.sign_up(referrer, await counting.someone(age=DAY))
    rejected = await counting.held(referrer, await counting.someone())
    for _ in range(2):
        await counting.credit(rejected)
        await counting.decide(rejected, Action.REJECT)
    leaver = await counting.someone()
    await counting.sign_up(referrer, leaver)
    await counting.erase(leaver)
    await counting.erase(leaver)
    assert tally.counted == {
        "referrals_decisions_total reject": 1,
        "referrals_held_total refunded-in-part": 1,
        "referrals_refusals_total account-erased": 1,
        "referrals_refusals_total declined": 1,
        "referrals_refusals_total existing-account": 1,
        "referrals_refusals_total same-email": 1,
        "referrals_signups_decided_total refused": 2,
        "referrals_signups_decided_total signed_up": 2,
    }


async def test_voided_minutes_are_counted_as_far_as_they_were_unused(counting: Books, tally: Tally) -> None:
    referral_id = await counting.credited(await counting.subscriber(), await counting.someone(), plan="starter")
    for _ in range(2):
        await counting.decide(referral_id, Action.VOID)
    assert tally.counted["referrals_minutes_voided_total referrer"] == 22
    assert tally.counted["referrals_decisions_total void"] == 1


async def test_the_seconds_to_the_credit_begin_with_stripe_s_event_or_what_else_came_last(
    counting: Books, tally: Tally
) -> None:
    referrer, quick, late = await counting.subscriber(), await counting.someone(), await counting.someone()
    first = await counting.sign_up(referrer, quick)
    await counting.put(quick, linked=True)
    await counting.pay(quick)
    counting.clock.advance(timedelta(seconds=40))
    await counting.credit(first)
    assert 40 <= tally.times[0] < 60
    # The payment is told first; an hour later the backend says whose customer it was.
    second = await counting.sign_up(referrer, late)
    await counting.pay(late)
    counting.clock.advance(timedelta(hours=1))
    await counting.put(late, linked=True)
    counting.clock.advance(timedelta(seconds=5))
    await counting.credit(second)
    assert 5 <= tally.times[1] < 30
    # What waited for an operator says nothing of the program.
    held = await counting.held(referrer, await counting.someone())
    await counting.decide(held, Action.APPROVE)
    assert len(tally.times) == 2
    assert tally.counted["referrals_credits_total pro"] == 3


async def test_the_end_of_a_delivery_is_counted_once(counting: Books, tally: Tally) -> None:
    await counting.credited(await counting.subscriber(), await counting.someone())
    (message_id, other), *_ = await counting.rows("SELECT min(message_id), max(message_id) FROM outbox")
    async with counting.database.transaction() as transaction:
        await outbox.begin(transaction, message_id, ["backend"])
        await outbox.delivered(transaction, message_id, "backend")
        await outbox.end(transaction, message_id, {})
    for _ in range(2):
        async with counting.database.transaction() as transaction:
            await outbox.end(transaction, other, {"backend": "the endpoint answered 500"})
    assert tally.counted["referrals_deliveries_total backend delivered"] == 1
    assert tally.counted["referrals_deliveries_total backend given_up"] == 1


# What waits


async def test_what_waits_is_measured_by_the_ledger_s_clock(counting: Books) -> None:
    async def look() -> Any:
        async with counting.database.transaction() as transaction:
            return await measures(transaction)

    nothing = await look()
    assert (nothing.expiry_lag, nothing.signup_lag, nothing.in_review, nothing.untold) == (0, 0, 0, 0)
    assert set(nothing.needs_attention.values()) == {0}
    assert nothing.events_lag is None

    referrer = await counting.subscriber(length=30 * DAY)
    await counting.credited(referrer, await counting.someone(), length=10 * DAY)
    soon = await look()
    assert (soon.expiry_lag, soon.message_lag, soon.messages) == (0, 0, 3), "nothing is late that is not due"
    await counting.held(referrer, await counting.someone())
    await counting.reserve(await counting.click(referrer), referrer, await counting.someone())
    strange = await counting.someone()
    waiting = await counting.sign_up(referrer, strange)
    await counting.put(strange, linked=True)
    await counting.pay(strange, plan="nobody-knows")
    await counting.credit(waiting)
    now = await counting.clock.now()
    await counting.apply(paid(await counting.someone(), now, now + DAY)[1])
    counting.clock.advance(10 * DAY + MINUTE)

    seen = await look()
    assert 60 <= seen.expiry_lag < 120
    assert seen.signup_lag >= (10 * DAY).total_seconds()
    assert seen.in_review == 1
    assert seen.in_review_lag >= (10 * DAY).total_seconds()
    assert {reason: number for reason, number in seen.needs_attention.items() if number} == {
        "refunded-in-part": 1,
        "unknown-price": 1,
    }
    assert seen.messages == 6
    assert seen.message_lag >= (10 * DAY).total_seconds() - 120
    assert (seen.untold, seen.untold_lag >= (10 * DAY).total_seconds()) == (1, True)


@pytest.mark.parametrize("query", [_LAGS, _ATTENTION], ids=["lags", "attention"])
async def test_no_look_reads_a_whole_table(books: Books, query: Any) -> None:
    await books.credited(await books.subscriber(), await books.someone())
    async with books.database.transaction() as transaction:
        await transaction.execute(text("SET LOCAL enable_seqscan = off"))
        rows = await transaction.execute(text(f"EXPLAIN {query.text}"), {"most": MOST})
        plan = "\n".join(row[0] for row in rows)
    # Where no index answers, PostgreSQL reads the table whatever it is told.
    assert not re.search(r"Seq Scan on (referral|grant_lot|outbox|stripe_event|referral_event)\b", plan), plan
    for index in re.findall(r"using (\w+) on (?:referral|grant_lot|outbox|stripe_event) ", plan):
        assert index in {
            "grant_lot_due",
            "referral_undecided",
            "outbox_due",
            "stripe_event_unsignalled",
            "referral_needs_attention",
        }, plan


async def test_the_starter_tells_how_the_ledger_is_also_while_it_is_away(
    starter: Starter, owner: "psycopg.Connection[tuple[Any, ...]]"
) -> None:
    assert await starter.metric("referrals_ledger_up") == 1
    assert await starter.metric("referrals_schema_mismatch") == 0
    owner.execute("UPDATE alembic_version SET version_num = '0000'")
    assert await starter.metric("referrals_schema_mismatch") == 0, "a look is kept for a moment"
    starter.app.state.services.metrics.looks._kept = 0
    assert await starter.metric("referrals_schema_mismatch") == 1
    assert await starter.metric("referrals_in_review") == 0
    url = re.sub(r":\d+/", f":{free_port()}/", starter.urls.app)
    async with starter.another(database_url=url) as cut_off:
        answer = await cut_off.send("GET", "/metrics")
        assert answer.status_code == 200
        samples = [line for line in answer.text.splitlines() if not line.startswith("#")]
        assert "referrals_ledger_up 0.0" in samples
        assert not [line for line in samples if line.startswith(("referrals_schema_mismatch", "referrals_expiry_lag"))]


async def test_many_who_ask_at_once_cost_the_ledger_one_look(database: Database) -> None:
    class Counted:
        transactions = 0

        def transaction(self) -> Any:
            self.transactions += 1
            return database.transaction()

    counted, looks = Counted(), Looks()
    await asyncio.gather(*(looks.look(counted) for _ in range(20)))  # type: ignore[arg-type]
    assert counted.transactions == 2


async def test_a_webhook_signed_with_a_wrong_secret_is_counted(starter: Starter) -> None:
    answer = await starter.send("POST", "/stripe/webhooks", content=b"{}", headers={"stripe-signature": "t=1,v1=ab"})
    assert answer.status_code == 400
    assert await starter.metric("referrals_stripe_events_total", answer="forged") == 1


async def test_what_the_starter_decides_by_itself_is_counted_there(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    visit = await whole_program.click(await whole_program.link(rita))
    fred = person("fred")
    await whole_program.signed_up(fred, referral_token=visit.token)

    async def stage() -> str:
        return str((await whole_program.get(f"/v1/referrals/{visit.referral_id}"))["stage"])

    await until(stage, lambda stage: stage == Stage.SIGNED_UP)
    await whole_program.call("DELETE", f"/v1/accounts/{fred.account_id}")
    assert await whole_program.metric("referrals_refusals_total", reason="account-erased") == 1
    assert await whole_program.metric("referrals_refusals_total") == 1
