"""A step that keeps failing is shown within a minute, heals by itself, and can be tried again at once."""

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import WorkflowHandle
from temporalio.worker import Replayer

from billing.events import reduce_event
from devstack.postgres import EmbeddedPostgres
from ledger import facts, referrals
from ledger.referrals import ClickedLink
from program.doubts import Doubt
from program.referral import Stage
from tests.operator_support import Operator, operator_of
from tests.stripe_events import invoice_paid, subscription
from tests.support import HASHES, DatabaseUrls, Member, World, until
from workflows import messages, policies
from workflows.payloads import DATA_CONVERTER
from workflows.registry import REFERRALS, workflow_runner

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
SHOWN = "**Needs attention**: a step keeps failing"

CANNOT_BE_WRITTEN = "REVOKE INSERT ON referral_event, review FROM referrals_app"
CAN_BE_WRITTEN = "GRANT INSERT ON referral_event, review TO referrals_app"


@pytest.fixture
def operator(live_idle_world: World, database_urls: DatabaseUrls) -> Operator:
    return operator_of(live_idle_world, database_urls)


async def details(run: WorkflowHandle[Any, Any]) -> str:
    """The current details, as the Web UI asks for them."""
    told = await run.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return str(told.current_details)


async def reasons(run: WorkflowHandle[Any, Any]) -> list[str]:
    """What a list filter of the Web UI finds the run by."""
    return list((await run.describe()).typed_search_attributes.get(messages.REVIEW_REASONS) or [])


async def attempts(run: WorkflowHandle[Any, Any]) -> int:
    """How often the step that is under way was tried."""
    pending = (await run.describe()).raw_description.pending_activities
    return max((step.attempt for step in pending), default=0)


async def paid_and_untold(world: World, friend: Member) -> None:
    """A payment comes on record, and the run does not hear of it."""
    now = await world.clock.now()
    period = (friend.customer_id, friend.subscription_id, now, now + 30 * DAY)
    for event in (subscription(*period), invoice_paid(*period)):
        async with world.database.transaction() as transaction:
            await facts.apply_event(transaction, reduce_event(event), world.plans, HASHES)


async def reserved_only(world: World, click: ClickedLink, referrer: Member, friend: Member) -> None:
    """A signup comes on record, and no run hears of it."""
    async with world.database.transaction() as transaction:
        await referrals.reserve(transaction, click, referrer.account_id, friend.account_id)


def admit(postgres: EmbeddedPostgres, urls: DatabaseUrls, *, connections: bool) -> None:
    """Let the database of the test be reached by nobody, or by everybody again."""
    name = urls.app.rpartition("/")[2]
    with psycopg.connect(postgres.superuser_url(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(sql.Identifier(name), sql.Literal(connections))
        )
        if not connections:
            # And waits until they are gone: nobody has one in hand that is just being ended.
            ending = "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE datname = %s"
            assert all(ended for (ended,) in connection.execute(ending, (name,)))


@pytest.mark.parametrize("step", ["attribute_signup", "credit_both", "expire_bonuses"])
async def test_a_step_that_keeps_failing_is_shown_within_a_minute_and_heals_by_itself(
    world: World, owner: psycopg.Connection, step: str
) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    run = world.handle(click.referral_id)
    if step == "attribute_signup":
        owner.execute(CANNOT_BE_WRITTEN)
    await world.sign_up(click, referrer, friend)
    if step != "attribute_signup":
        await world.reaches(click.referral_id, Stage.SIGNED_UP)
    if step == "credit_both":
        owner.execute(CANNOT_BE_WRITTEN)
    await world.pay(friend, length=15 * DAY)
    if step == "expire_bonuses":
        await world.reaches(click.referral_id, Stage.CREDITED)
        owner.execute(CANNOT_BE_WRITTEN)
        await world.pass_time(15 * DAY)
    await until(lambda: attempts(run), lambda tried: tried > 1)
    assert SHOWN not in await details(run), "a step that failed once is no trouble yet"
    if step != "expire_bonuses":
        assert await reasons(run) == []

    await world.pass_time(MINUTE - policies.SHOWN_AS_FAILING / 2)
    told = await until(lambda: details(run), lambda told: SHOWN in told)
    assert "InsufficientPrivilege" in told
    assert messages.STEP_FAILING in await reasons(run)
    if step == "expire_bonuses":
        # What comes in meanwhile leaves it shown.
        await run.signal(messages.REVERSED, messages.PaymentReversed(Doubt.DISPUTED))
        await until(lambda: reasons(run), lambda shown: shown == [Doubt.DISPUTED, messages.STEP_FAILING])
        assert SHOWN in await details(run)

    owner.execute(CAN_BE_WRITTEN)
    await world.pass_time(MINUTE)
    await until(lambda: details(run), lambda told: SHOWN not in told)
    assert messages.STEP_FAILING not in await reasons(run)
    assert (await world.outcome(click.referral_id)).stage is Stage.SETTLED
    assert await world.story(click.referral_id) == [Stage.SIGNED_UP, Stage.CREDITED, Stage.SETTLED]
    # Another worker that takes the run up goes the same way.
    await Replayer(
        workflows=list(REFERRALS.values()),
        data_converter=DATA_CONVERTER,
        workflow_runner=workflow_runner(),
    ).replay_workflow(await run.fetch_history())


async def test_an_operator_s_decision_that_cannot_be_carried_out_is_shown_in_its_review(
    world: World, owner: psycopg.Connection
) -> None:
    referral_id, _, friend = await world.waiting_friend()
    await world.pay(friend)
    await world.reaches(referral_id, Stage.CREDITED)
    await world.handle(referral_id).terminate("as if it were settled")
    owner.execute(CANNOT_BE_WRITTEN)
    client = world.environment.client
    run = await client.start_workflow(
        messages.REVIEW_WORKFLOW,
        messages.ReviewStart(referral_id),
        id=messages.review_id(referral_id),
        task_queue=world.task_queue,
    )
    void = asyncio.create_task(world.void(run.id))
    await until(lambda: attempts(run), lambda tried: tried > 1)

    await world.pass_time(MINUTE)
    await until(lambda: details(run), lambda told: SHOWN in told)
    assert await reasons(run) == [messages.STEP_FAILING]

    owner.execute(CAN_BE_WRITTEN)
    await world.pass_time(MINUTE)
    assert (await void).stage is Stage.CREDITED
    assert SHOWN not in await details(run)
    assert await reasons(run) == []


async def test_while_the_database_is_away_operators_see_which_runs_wait_for_it_and_retry_them_when_it_is_back(
    live_world: World,
    operator: Operator,
    postgres: EmbeddedPostgres,
    database_urls: DatabaseUrls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policies, "SHOWN_AS_FAILING", timedelta(seconds=1))
    world = live_world
    referral_id, _, friend = await world.waiting_friend()
    run = world.handle(referral_id)
    # Stripe's event is on record, and the database goes away before the run hears of it.
    await paid_and_untold(world, friend)
    admit(postgres, database_urls, connections=False)
    await run.signal(messages.PAYMENT, messages.PaymentReported("evt_1"))

    async def failing() -> Any:
        said = await operator.says("failing", "--json")
        return said.document

    await until(lambda: reasons(run), lambda shown: messages.STEP_FAILING in shown, 60)
    # Lists are a moment behind.
    listed = await until(
        failing, lambda answer: any(entry["referral_id"] == referral_id for entry in answer["failing"]), 60
    )
    [entry] = [entry for entry in listed["failing"] if entry["referral_id"] == referral_id]
    assert (entry["workflow_id"], entry["stage"]) == (run.id, "signed_up")
    seen, text = await asyncio.gather(operator.answer("inspect", referral_id), operator.says("inspect", referral_id))
    tried = await operator.refusal("retry", referral_id, "--patience", "1")
    assert seen["story"] is None
    assert seen["ledger_unreachable"]
    assert "credit_both failed: " in seen["run"]["run"]["problem"]
    assert "The ledger cannot be reached: " in text.out
    assert "asked, and not done within 1 seconds: " in tried
    assert SHOWN in await details(run)
    assert "OperationalError" in await details(run)

    # The next attempt is eight seconds away: the retry comes before it.
    await until(lambda: attempts(run), lambda number: number > 5, 60)
    admit(postgres, database_urls, connections=True)
    done = await operator.answer("retry", referral_id)
    assert (done["stage"], done["steps"], done["needs_attention"]) == ("credited", ["credit_both"], None)
    assert [lot.minutes for lot in await world.lots(friend)] == [90]
    [started] = [
        event.activity_task_started_event_attributes
        for event in await world.events(referral_id)
        if event.HasField("activity_task_started_event_attributes")
    ]
    assert started.attempt == 1, "it was not tried again at once, but at its time"
    assert SHOWN not in await details(run)


async def test_rule_6_a_retry_never_credits_twice(live_world: World, operator: Operator) -> None:
    world = live_world
    referral_id, referrer, friend = await world.waiting_friend()
    waiting = await operator.answer("retry", referral_id)
    await paid_and_untold(world, friend)

    first, second = await asyncio.gather(operator.answer("retry", referral_id), operator.answer("retry", referral_id))
    again = await operator.says("retry", f"referral-{referral_id}")

    assert (waiting["stage"], waiting["how"]) == ("signed_up", "the run was asked to look again")
    assert first["stage"] == second["stage"] == "credited"
    assert again.status == 0, again.err
    assert again.out.startswith(f"{referral_id}: the run was asked to look again; the referral is credited")
    for member in (referrer, friend):
        assert [(lot.minutes, lot.remaining) for lot in await world.lots(member)] == [(90, 90)]
    assert await world.story(referral_id) == [Stage.SIGNED_UP, Stage.CREDITED]


async def test_a_retry_takes_up_what_no_run_knows_and_says_where_there_is_nothing_to_do(
    live_world: World, operator: Operator
) -> None:
    world = live_world
    referrer, owner_of_link = await world.subscriber(), await world.subscriber()
    unheard_of = await world.click(owner_of_link, start=False)
    friend = await world.member("friend")
    await reserved_only(world, unheard_of, owner_of_link, friend)
    click = await world.click(referrer)
    ended, _, _ = await world.waiting_friend()
    await world.handle(ended).terminate("by mistake")

    started, nobody, from_outside = await asyncio.gather(
        operator.answer("retry", unheard_of.referral_id),
        operator.refusal("retry", click.referral_id),
        operator.refusal("retry", ended),
    )
    await world.void(f"referral-{unheard_of.referral_id}")
    await world.outcome(unheard_of.referral_id)
    over = await operator.refusal("retry", unheard_of.referral_id)

    assert (started["how"], started["stage"]) == ("the run was started anew", "signed_up")
    assert nobody == "nothing to retry: nobody is known to have signed up with that referral"
    assert from_outside == f"nothing to retry: its run was ended from outside: reset referral-{ended} first"
    assert over == "nothing to retry: it is over: the referral is voided"
    assert len(await world.events(click.referral_id)) == 1, "a mere click was woken"


async def test_what_a_retry_cannot_mend_it_says(live_world: World, operator: Operator) -> None:
    referral_id, _, friend = await live_world.waiting_friend()
    await live_world.pay(friend, plan="mystery")

    said = await operator.says("retry", referral_id)

    assert said.status == 1
    assert "still needs attention. Paid, but no plan is known for price_mystery" in said.out
