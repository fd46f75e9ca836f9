"""What a referral costs in Temporal: events and bytes of its history, as the real server counts them.

`pytest tests/test_history_budget.py -s` prints the figures.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from bench.capacity import CLICK, LAPSED, SETTLED, WAITING, Path
from program.referral import Stage
from tests.scenarios import SECOND, credited
from tests.support import Member, World
from workflows import messages
from workflows.messages import PaymentReported

DAY = timedelta(days=1)
MOST_EVENTS = 45
MOST_BYTES = 10_000
MOST_BYTES_OF_A_CLICK = 800
ACTIONS = {
    "WORKFLOW_EXECUTION_STARTED",
    "WORKFLOW_EXECUTION_SIGNALED",
    "WORKFLOW_EXECUTION_UPDATE_ACCEPTED",
    "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES",
    "ACTIVITY_TASK_SCHEDULED",
    "TIMER_STARTED",
}
"""What Temporal Cloud's documentation counts, of what is in these histories."""


async def _cost(world: World, referral_id: str) -> tuple[int, int]:
    info = (await world.handle(referral_id).describe()).raw_description.workflow_execution_info
    return info.history_length, info.history_size_bytes


async def _path(world: World, referral_id: str) -> Path:
    """What a run has cost so far, as `bench/capacity.py` reckons with it."""
    info = (await world.handle(referral_id).describe()).raw_description.workflow_execution_info
    return Path(actions(await world.events(referral_id)), info.history_size_bytes, info.state_transition_count)


def actions(events: Sequence[HistoryEvent]) -> int:
    """How many actions a history comes to in Temporal Cloud. Markers of one task, local steps of ours, are one."""
    counted = sum(EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") in ACTIONS for event in events)
    markers = {
        event.marker_recorded_event_attributes.workflow_task_completed_event_id
        for event in events
        if event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED
    }
    return counted + len(markers)


def _is_about(path: Path, reckoned: Path) -> None:
    """Hold that what capacity is reckoned with is what a run costs, give or take the length of ids."""
    print(f"  {path}")
    assert path.actions == reckoned.actions
    # A machine that is busy gives the same in more tasks.
    assert path.size == pytest.approx(reckoned.size, rel=0.15)
    assert path.transitions == pytest.approx(reckoned.transitions, abs=4)


@pytest.fixture
async def referrer(live_idle_world: World) -> Member:
    """A referrer with an account id of the length that a UUID has."""
    world = live_idle_world
    name = "0f8fad5b-d9cb-469f-a165-70867728950e"
    return await world.subscriber(name[:-5], started=10 * DAY, length=10 * DAY - timedelta(hours=1))


async def test_a_waiting_click_costs_one_event_and_wakes_no_worker(live_idle_world: World, referrer: Member) -> None:
    world = live_idle_world
    began = await world.clock.now()
    click = await world.click(referrer, ago=97 * DAY - 6 * SECOND)
    took = await world.clock.now() - began
    async with world.worker():
        events, size = await _cost(world, click.referral_id)
        assert events == 1
        assert size <= MOST_BYTES_OF_A_CLICK
        print(f"a waiting click: {events} event, {size} bytes")
        [started] = await world.events(click.referral_id)
        _is_about(Path(actions([started]), size, 1), CLICK)
        delay = started.workflow_execution_started_event_attributes.first_workflow_task_backoff.ToTimedelta()
        late = started.event_time.ToDatetime(click.window.lapses_at.tzinfo) + delay - click.window.lapses_at
        assert -SECOND / 1000 < late < took
        # A plain signal is kept, and ends nothing.
        await world.handle(click.referral_id).signal(messages.PAYMENT, PaymentReported("evt_1"))
        state = await world.outcome(click.referral_id)
    assert (state.stage, state.payments_reported) == (Stage.LAPSED, 1)
    kinds = [event.event_type for event in await world.events(click.referral_id)]
    assert kinds[:2] == [
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
    ]
    first_task = (await world.events(click.referral_id))[2]
    assert first_task.event_time.ToDatetime(click.window.lapses_at.tzinfo) >= click.window.lapses_at
    events, size = await _cost(world, click.referral_id)
    print(f"lapsed without a signup: {events} events, {size} bytes, of which a signal that is none of its own")
    assert events <= 10
    assert actions(await world.events(click.referral_id)) == LAPSED.actions + 1


async def test_a_signup_ends_the_wait_of_a_click_at_once(live_idle_world: World, referrer: Member) -> None:
    world, paths = live_idle_world, []
    async with world.worker():
        # Where the machine is busy, one may take a task more; none takes less than it needs.
        for _ in range(3):
            click = await world.click(referrer)
            friend = await world.member("friend")
            await world.sign_up(click, referrer, friend)
            await world.reaches(click.referral_id, Stage.SIGNED_UP)
            paths.append(await _path(world, click.referral_id))
    print("signed up:")
    _is_about(min(paths, key=lambda path: path.size), WAITING)


async def test_a_whole_referral_stays_within_its_budget(live_idle_world: World, referrer: Member) -> None:
    """From click to both expiries, each at a time of its own, with a payment that is told twice."""
    world = live_idle_world
    async with world.worker():
        began = await world.clock.now()
        click = await world.click(referrer)
        friend = await world.member("7c9e6679-7425-40de-944b-e07fc1f", created_at=await world.clock.now())
        await world.sign_up(click, referrer, friend)
        await world.reaches(click.referral_id, Stage.SIGNED_UP)
        world.signup_took = await world.clock.now() - began
        await credited(world, click.referral_id, referrer, friend, 3 * SECOND, 5 * SECOND)
        await world.handle(click.referral_id).signal(messages.PAYMENT, PaymentReported("evt_1RtZ8kLkdIwHu7ixAbCdEfGh"))
        state = await world.outcome(click.referral_id)
        assert state.stage is Stage.SETTLED
    events, size = await _cost(world, click.referral_id)
    print(f"a whole referral: {events} events, {size} bytes")
    kinds = Counter(EventType.Name(event.event_type) for event in await world.events(click.referral_id))
    print("\n".join(f"  {number:3} {kind.removeprefix('EVENT_TYPE_').lower()}" for kind, number in kinds.most_common()))
    assert events <= MOST_EVENTS
    assert size <= MOST_BYTES
    _is_about(await _path(world, click.referral_id), SETTLED)
    # The steps were taken within the run's own tasks.
    assert kinds["EVENT_TYPE_ACTIVITY_TASK_SCHEDULED"] == 0
    assert kinds["EVENT_TYPE_MARKER_RECORDED"] == 4
