"""What operators see of a referral's run in Temporal's Web UI, on the real server, without opening any code."""

from datetime import datetime, timedelta
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.converter import DataConverter

from program.referral import Role, Stage
from tests.scenarios import SECOND, Trouble, credited, slack
from tests.stripe_events import invoice_paid, subscription
from tests.support import World, until
from workflows import messages

DAY = timedelta(days=1)


async def found(world: World, query: str) -> list[str]:
    """The ids of the runs that a list filter of the Web UI finds."""
    return [run.id async for run in world.environment.client.list_workflows(query)]


async def finds(world: World, referral_id: str, query: str) -> None:
    """Wait until a list filter finds the run, and it alone: lists run a little behind."""
    await until(lambda: found(world, query), lambda ids: ids == [messages.workflow_id(referral_id)])


async def details(world: World, referral_id: str) -> str:
    """The current details, as the Web UI asks for them."""
    return (await metadata(world, referral_id)).current_details


async def metadata(world: World, referral_id: str) -> WorkflowMetadata:
    """What a run says of itself, as the Web UI asks for it."""
    answer = await world.handle(referral_id).query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    assert isinstance(answer, WorkflowMetadata)
    return answer


async def summary(event: Any) -> str:
    [text] = await DataConverter.default.decode([event.user_metadata.summary])
    return str(text)


async def test_an_operator_finds_a_referral_by_what_it_is_about(live_world: World) -> None:
    world = live_world
    began = await world.clock.now()
    referrer = await world.subscriber(started=10 * DAY, length=10 * DAY - timedelta(hours=1))
    click = await world.click(referrer)
    of_referrer = f"ReferrerAccount = '{referrer.account_id}'"
    await finds(world, click.referral_id, f"{of_referrer} AND ReferralStage = 'clicked'")
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await finds(world, click.referral_id, f"RefereeAccount = '{friend.account_id}' AND ReferralStage = 'signed_up'")
    world.signup_took = await world.clock.now() - began
    start = await credited(world, click.referral_id, referrer, friend, 5 * SECOND, 7 * SECOND)
    await finds(world, click.referral_id, f"{of_referrer} AND ReferralStage = 'credited' AND Plan = 'pro'")
    before = (await world.referral(click.referral_id)).expires_at
    await finds(world, click.referral_id, f"{of_referrer} AND {_at(before[Role.REFERRER])}")
    moved = start + 8 * SECOND + slack(world)
    await world.report(
        subscription(
            referrer.customer_id, referrer.subscription_id, start, moved, type_="customer.subscription.updated"
        )
    )
    await finds(world, click.referral_id, f"{of_referrer} AND {_at(before[Role.REFEREE])}")
    await world.outcome(click.referral_id)
    await finds(
        world,
        click.referral_id,
        f"{of_referrer} AND ReferralStage = 'settled' AND ExecutionStatus = 'Completed'",
    )
    assert await found(world, f"{of_referrer} AND ReferralStage = 'credited'") == []


def _at(at: datetime) -> str:
    """The filter for the runs whose next bonus expires in that second."""
    first, next_ = (f"{one:%Y-%m-%dT%H:%M:%SZ}" for one in (at, at + SECOND))
    return f"BonusExpiresAt >= '{first}' AND BonusExpiresAt < '{next_}'"


async def test_an_operator_finds_what_needs_attention_until_it_is_mended(live_world: World) -> None:
    world = live_world
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    now = await world.clock.now()
    await world.report(
        invoice_paid(friend.customer_id, friend.subscription_id, now, now + DAY, plan=f"mystery_{click.referral_id}")
    )
    mine = f"ReferrerAccount = '{referrer.account_id}'"
    await finds(world, click.referral_id, f"{mine} AND ReviewReasons = 'unknown-price'")
    await finds(world, click.referral_id, f"{mine} AND ReviewReasons IS NOT NULL")
    text = await details(world, click.referral_id)
    assert "Needs attention" in text
    assert f"price_mystery_{click.referral_id}" in text
    [timer] = [event async for event in _events(world, click.referral_id, EventType.EVENT_TYPE_TIMER_STARTED)]
    assert "look again" in await summary(timer)
    await world.pay(friend)
    await world.reaches(click.referral_id, Stage.CREDITED)
    await until(lambda: found(world, f"{mine} AND ReviewReasons IS NOT NULL"), lambda ids: ids == [])
    assert "Needs attention" not in await details(world, click.referral_id)


async def _events(world: World, referral_id: str, kind: EventType.ValueType) -> Any:
    for event in await world.events(referral_id):
        if event.event_type == kind:
            yield event


async def test_a_run_tells_its_story_in_the_current_details(live_world: World) -> None:
    world = live_world
    began = await world.clock.now()
    referrer = await world.subscriber(started=10 * DAY, length=10 * DAY - timedelta(hours=1))
    click = await world.click(referrer)
    described = await world.handle(click.referral_id).describe()
    assert await described.static_summary() == f"Referral by {referrer.account_id}"
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    text = await details(world, click.referral_id)
    assert text.startswith("**signed_up**: waits for the friend's first payment")
    assert f"`{referrer.account_id}`" in text
    assert f"`{friend.account_id}`" in text
    world.signup_took = await world.clock.now() - began
    await credited(world, click.referral_id, referrer, friend, 3 * SECOND, 4 * SECOND)
    text = await details(world, click.referral_id)
    ends = (await world.referral(click.referral_id)).expires_at
    assert text.startswith("**credited**")
    for role, at in ends.items():
        assert f"- bonus of the {role}: 90 minutes, usable until {at:%Y-%m-%d %H:%M:%S} UTC" in text
    await world.outcome(click.referral_id)
    text = await details(world, click.referral_id)
    assert text.startswith("**settled**")
    assert text.count("90 expired unused") == 2


async def test_a_refusal_says_why_in_the_current_details(live_world: World) -> None:
    world = live_world
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend", created_at=await world.clock.now() - DAY)
    await world.sign_up(click, referrer, friend)
    state = await world.outcome(click.referral_id)
    assert f"Why: {state.reason}" in await details(world, click.referral_id)


async def test_every_step_and_every_timer_says_what_it_is_for(live_idle_world: World) -> None:
    world, trouble = live_idle_world, Trouble()
    began = await world.clock.now()
    referrer = await world.subscriber(started=10 * DAY, length=10 * DAY - timedelta(hours=1))
    click = await world.click(referrer)
    trouble.local_steps.add(("credit_both", click.referral_id))
    friend = await world.member("friend")
    async with world.worker(trouble):
        await world.sign_up(click, referrer, friend)
        await world.reaches(click.referral_id, Stage.SIGNED_UP)
        world.signup_took = await world.clock.now() - began
        # So far apart that the second is not over yet when somebody looks at the first.
        await credited(world, click.referral_id, referrer, friend, 3 * SECOND, 10 * SECOND)
        await world.outcome(click.referral_id)
    said = {}
    for event in await world.events(click.referral_id):
        if event.HasField("user_metadata"):
            said[event.event_id] = (EventType.Name(event.event_type), await summary(event))
    assert list(said.values()) == [
        ("EVENT_TYPE_WORKFLOW_EXECUTION_STARTED", f"Referral by {referrer.account_id}"),
        ("EVENT_TYPE_MARKER_RECORDED", "does the signup count? (rules 10, 15, 18)"),
        ("EVENT_TYPE_MARKER_RECORDED", "credit both sides, once and together (rules 3-8)"),
        ("EVENT_TYPE_ACTIVITY_TASK_SCHEDULED", "credit both sides, once and together (rules 3-8)"),
        ("EVENT_TYPE_TIMER_STARTED", "does the step keep failing?"),
        ("EVENT_TYPE_TIMER_STARTED", "the bonus of the referrer expires"),
        ("EVENT_TYPE_TIMER_CANCELED", "does the step keep failing?"),
        ("EVENT_TYPE_MARKER_RECORDED", "expire what is due (rule 7)"),
        ("EVENT_TYPE_TIMER_STARTED", "the bonus of the referee expires"),
        ("EVENT_TYPE_MARKER_RECORDED", "expire what is due (rule 7)"),
    ]


async def test_every_message_says_what_it_is_for(live_world: World) -> None:
    world = live_world
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    definition = (await metadata(world, click.referral_id)).definition
    assert definition.type == messages.WORKFLOW
    kinds = (definition.signal_definitions, definition.query_definitions, definition.update_definitions)
    said = {one.name: one.description for kind in kinds for one in kind if not one.name.startswith("__")}
    assert set(said) >= {messages.SIGNUP, messages.PAYMENT, messages.CYCLE_MOVED, messages.STATE}
    assert all(said.values()), said
