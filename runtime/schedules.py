"""The Schedules of a deployment: made where they are missing, brought up to date where they differ."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from temporalio.api.common.v1 import Payload
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from workflows.jobs import JOBS, Job, upkeep_queue


async def set_up_schedules(client: Client, task_queue: str, jobs: Sequence[Job] = JOBS) -> bool:
    """Make every job's Schedule, or change it to what it should be. One that an operator paused stays paused.

    Args:
        client: connected to the namespace.
        task_queue: that of the referrals; the jobs have one of their own beside it.
        jobs: which; others are left as they are.

    Returns:
        Whether anything had to be done.

    Raises:
        RPCError: the server refuses.
    """
    return any([await _set_up(client, job, upkeep_queue(task_queue)) for job in jobs])


async def schedules_amiss(client: Client, task_queue: str, jobs: Sequence[Job] = JOBS) -> dict[str, str]:
    """What is wrong with the jobs' Schedules, by their ids; empty where nothing is.

    Args:
        client: connected to the namespace.
        task_queue: that of the referrals.
        jobs: which.

    Raises:
        RPCError: the server refuses.
    """
    found = {job.schedule_id: await _amiss(client, job, upkeep_queue(task_queue)) for job in jobs}
    return {schedule_id: words for schedule_id, words in found.items() if words}


async def _amiss(client: Client, job: Job, queue: str) -> str | None:
    try:
        description = await client.get_schedule_handle(job.schedule_id).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return "is missing"
        raise
    present = description.schedule
    if await _essence(client, present) != await _essence(client, _schedule(job, queue)):
        return "is not as it should be"
    if present.state.paused:
        return f"is paused: {present.state.note}" if present.state.note else "is paused"
    began = max((action.started_at for action in description.info.recent_actions), default=description.info.created_at)
    late = datetime.now(UTC) - began
    if late > 2 * job.times.every + job.times.at_most:
        return f"has started nothing for {int(late.total_seconds() // 60)} minutes"
    return None


async def _set_up(client: Client, job: Job, queue: str) -> bool:
    wanted = _schedule(job, queue)
    try:
        await client.create_schedule(job.schedule_id, wanted)
    except ScheduleAlreadyRunningError:
        return await _bring_up_to_date(client, job, wanted)
    return True


async def _bring_up_to_date(client: Client, job: Job, wanted: Schedule) -> bool:
    changed = False

    async def update(known: ScheduleUpdateInput) -> ScheduleUpdate | None:
        nonlocal changed
        present = known.description.schedule
        changed = await _essence(client, present) != await _essence(client, wanted)
        wanted.state = ScheduleState(note=present.state.note, paused=present.state.paused)
        return ScheduleUpdate(wanted) if changed else None

    await client.get_schedule_handle(job.schedule_id).update(update)
    return changed


def _schedule(job: Job, queue: str) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            job.workflow,
            args=[] if job.argument is None else [job.argument],
            id=job.schedule_id,
            task_queue=queue,
            execution_timeout=job.times.at_most,
            static_summary=job.summary,
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=job.times.every, offset=job.times.offset)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=job.times.catch_up),
    )


async def _essence(client: Client, schedule: Schedule) -> tuple[object, ...]:
    """What of a Schedule is ours to decide, in a form that can be compared with what the server tells of it."""
    action = schedule.action
    if not isinstance(action, ScheduleActionStartWorkflow):
        return ()
    summary = action.static_summary
    texts = [*action.args, *([] if summary is None else [summary])]
    given = [text for text in texts if not isinstance(text, Payload)]
    encoded = iter(await client.data_converter.encode(given))
    payloads = [text if isinstance(text, Payload) else next(encoded) for text in texts]
    return (
        action.workflow,
        action.id,
        action.task_queue,
        action.execution_timeout,
        [payload.data for payload in payloads],
        [(interval.every, interval.offset or timedelta(0)) for interval in schedule.spec.intervals],
        schedule.policy,
    )
