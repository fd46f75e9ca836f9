"""A run whose history grows long goes on in a new one, and nothing gets lost on the way (on the real server)."""

import asyncio
from datetime import timedelta

from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.client import WorkflowExecutionStatus

from program.referral import Stage
from tests.scenarios import SECOND, credited, signed_up
from tests.support import World, until
from workflows import messages
from workflows.messages import PaymentReported

NUDGES = 30


async def test_a_long_history_goes_on_in_a_new_run_with_everything_that_it_knew(short_histories_world: World) -> None:
    world = short_histories_world
    async with world.worker():
        referral_id, referrer, friend = await signed_up(world)
        # Runs go on for each other while these come in; each of them must be heard.
        handle = world.handle(referral_id)
        for number in range(NUDGES):
            await handle.signal(messages.PAYMENT, PaymentReported(f"evt_{number}"))
        await until(lambda: world.state(referral_id), lambda state: state.payments_looked_at == NUDGES)
        state = await world.state(referral_id)
        assert (state.stage, state.referee, state.payments_reported) == (Stage.SIGNED_UP, friend.account_id, NUDGES)
        await credited(world, referral_id, referrer, friend, 13 * SECOND, 15 * SECOND)
        before = await world.state(referral_id)
        await asyncio.gather(
            *(handle.signal(messages.PAYMENT, PaymentReported(f"evt_again_{number}")) for number in range(NUDGES))
        )
        state = await world.outcome(referral_id)
    assert state.stage is Stage.SETTLED
    assert state.payments_reported == before.payments_reported + NUDGES
    assert (state.referee, state.plan, state.credited_at) == (friend.account_id, "pro", before.credited_at)
    assert {role: bonus.expires_at for role, bonus in state.bonuses.items()} == {
        role: bonus.expires_at for role, bonus in before.bonuses.items()
    }
    assert await world.story(referral_id) == [Stage.SIGNED_UP, Stage.CREDITED, Stage.SETTLED]
    runs = [run async for run in world.environment.client.list_workflows(f"WorkflowId = '{handle.id}'")]
    continued = [run for run in runs if run.status is WorkflowExecutionStatus.CONTINUED_AS_NEW]
    assert len(continued) >= 2
    described = await handle.describe()
    attributes = described.typed_search_attributes
    assert attributes[messages.REFERRER_ACCOUNT] == referrer.account_id
    assert attributes[messages.REFEREE_ACCOUNT] == friend.account_id
    assert attributes[messages.PLAN] == "pro"
    assert (await described.memo())["clicked_at"]
    for run in runs:
        history = await world.environment.client.get_workflow_handle(run.id, run_id=run.run_id).fetch_history()
        # No run of them waits for the click's window again.
        first = history.events[0].workflow_execution_started_event_attributes
        assert not first.continued_execution_run_id or (
            first.first_workflow_task_backoff.ToTimedelta() < timedelta(minutes=1)
        )
        for event in history.events:
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
                # A signal came in while the run was about to go on: the server lets it be heard first.
                cause = event.workflow_task_failed_event_attributes.cause
                assert cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND
