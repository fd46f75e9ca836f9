"""The Schedules of a deployment, on the real server: made once, kept up to date, and none of them blocks another."""

import asyncio
from collections.abc import MutableMapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs
from temporalio import workflow
from temporalio.client import (
    Client,
    ScheduleActionStartWorkflow,
    ScheduleDescription,
    ScheduleOverlapPolicy,
    WorkflowExecutionStatus,
)
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from ledger.database import Database
from program.plans import Plans
from runtime.schedules import set_up_schedules
from runtime.temporal import set_up_namespace
from tests.stripe_events import charge_refunded, invoice_payment_paid, unique
from tests.support import Books, Clock, World, until
from worker import work
from workflows.jobs import JOBS, Job, upkeep_queue
from workflows.payloads import DATA_CONVERTER
from workflows.policies import JobTimes

SECOND = timedelta(seconds=1)


@pytest.fixture
async def namespace(dev_server: str) -> Client:
    """A client of a namespace of the test's own, for the ids of Schedules are fixed."""
    client = await Client.connect(dev_server, namespace=unique("schedules"), data_converter=DATA_CONVERTER)
    await set_up_namespace(client)
    return client


@pytest.fixture
async def scheduled_world(database: Database, plans: Plans, namespace: Client, clock: Clock) -> World:
    """The program in that namespace; no worker runs."""
    return World(database, plans, WorkflowEnvironment.from_client(namespace), clock, unique("queue"))


async def described(client: Client, job: Job) -> ScheduleDescription:
    return await client.get_schedule_handle(job.schedule_id).describe()


async def test_every_job_has_a_schedule_that_skips_overlaps_and_bounds_each_run(namespace: Client) -> None:
    assert await set_up_schedules(namespace, "referrals")

    for job in JOBS:
        schedule = (await described(namespace, job)).schedule
        assert schedule.policy.overlap is ScheduleOverlapPolicy.SKIP
        assert schedule.policy.catchup_window == job.times.catch_up
        assert [each.every for each in schedule.spec.intervals] == [job.times.every]
        action = schedule.action
        assert isinstance(action, ScheduleActionStartWorkflow)
        assert (action.workflow, action.task_queue) == (job.workflow, "referrals-upkeep")
        assert action.execution_timeout == job.times.at_most


async def test_setting_up_again_changes_nothing(namespace: Client) -> None:
    await set_up_schedules(namespace, "referrals")
    before = [(await described(namespace, job)).info.last_updated_at for job in JOBS]

    assert not await set_up_schedules(namespace, "referrals")

    assert [(await described(namespace, job)).info.last_updated_at for job in JOBS] == before
    assert {found.id async for found in await namespace.list_schedules()} <= {job.schedule_id for job in JOBS}


@pytest.mark.parametrize(
    "changes",
    [
        {"times": JobTimes(timedelta(hours=2), timedelta(0), timedelta(hours=1), timedelta(minutes=5))},
        {"workflow": "AnotherWorkflow"},
        {"argument": {"days": 4}},
        {"summary": "another line"},
    ],
)
async def test_a_schedule_that_differs_is_brought_up_to_date_and_a_paused_one_stays_so(
    namespace: Client, changes: dict[str, object]
) -> None:
    await set_up_schedules(namespace, "referrals", JOBS[:1])
    handle = namespace.get_schedule_handle(JOBS[0].schedule_id)
    await handle.pause(note="the endpoint is being moved")
    changed = replace(JOBS[0], **changes)  # type: ignore[arg-type]

    assert await set_up_schedules(namespace, "referrals", [changed])
    assert not await set_up_schedules(namespace, "referrals", [changed])

    schedule = (await described(namespace, changed)).schedule
    assert (schedule.state.paused, schedule.state.note) == (True, "the endpoint is being moved")
    assert [each.every for each in schedule.spec.intervals] == [changed.times.every]


async def test_another_task_queue_moves_the_jobs_there(namespace: Client) -> None:
    await set_up_schedules(namespace, "referrals", JOBS[:1])

    assert await set_up_schedules(namespace, "others", JOBS[:1])

    action = (await described(namespace, JOBS[0])).schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    assert action.task_queue == "others-upkeep"


@workflow.defn(sandboxed=False)
class Hanging:
    """A job that never comes to an end."""

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)


@workflow.defn(sandboxed=False)
class Prompt:
    """A job that does."""

    @workflow.run
    async def run(self) -> None:
        """Nothing to do."""


async def test_a_run_that_hangs_is_ended_and_blocks_neither_the_next_nor_another_schedule(namespace: Client) -> None:
    times = JobTimes(every=SECOND, offset=timedelta(0), catch_up=10 * SECOND, at_most=SECOND)
    jobs = [Job("hanging", "Hanging", "hangs", times), Job("prompt", "Prompt", "does not hang", times)]
    queue = unique("queue")

    async def runs(job: Job, status: WorkflowExecutionStatus) -> int:
        query = f"TemporalScheduledById = '{job.schedule_id}' AND ExecutionStatus = {status.value}"
        return (await namespace.count_workflows(query)).count

    async with Worker(namespace, task_queue=upkeep_queue(queue), workflows=[Hanging, Prompt]):
        await set_up_schedules(namespace, queue, jobs)
        await until(lambda: runs(jobs[0], WorkflowExecutionStatus.TIMED_OUT), lambda number: number >= 2)
        assert await runs(jobs[0], WorkflowExecutionStatus.RUNNING) <= 1
        # While that one hung, the other one was not kept from its turns.
        await until(lambda: runs(jobs[1], WorkflowExecutionStatus.COMPLETED), lambda number: number >= 4)
    for job in jobs:
        await namespace.get_schedule_handle(job.schedule_id).delete()


async def test_rule_19_whoever_waits_for_an_operator_is_in_the_log_every_day_and_stays_held(
    scheduled_world: World,
) -> None:
    world, books = scheduled_world, Books(scheduled_world.database, scheduled_world.plans, scheduled_world.clock)
    friend = await books.someone()
    referral_id = await books.sign_up(await books.subscriber(), friend)
    await books.put(friend, linked=True)
    _, paid = await books.pay(friend)
    payment = invoice_payment_paid(paid["data"]["object"]["id"], await books.clock.now())
    intent = payment["data"]["object"]["payment"]["payment_intent"]
    await books.report(payment, charge_refunded(intent, 100, customer=friend.customer_id))
    await books.credit(referral_id)
    # Another one that waits for nobody.
    await books.credited(await books.subscriber(), await books.someone())
    world.clock.advance(timedelta(days=12))
    before = await books.referral(referral_id)
    client = world.environment.client
    await set_up_schedules(client, world.task_queue)
    with capture_logs() as lines:
        async with world.upkeep_worker():
            await client.get_schedule_handle("referrals-reminders").trigger()

            async def reminders() -> list[MutableMapping[str, Any]]:
                return [line for line in lines if line["event"] == "referral waits for an operator"]

            [reminder] = await until(reminders, bool)
    assert (reminder["referral_id"], reminder["days"]) == (referral_id, 12)
    assert (reminder["reasons"], reminder["log_level"]) == (before.review_reasons, "warning")
    assert friend.email not in str(reminder)
    assert await books.referral(referral_id) == before


async def test_a_worker_that_fails_takes_the_process_down_and_the_other_finishes(
    live_idle_world: World, dev_server: str
) -> None:
    world = live_idle_world
    nowhere = await Client.connect(dev_server, namespace=unique("nowhere"), data_converter=DATA_CONVERTER)
    environment = WorkflowEnvironment.from_client(nowhere)
    elsewhere = World(world.database, world.plans, environment, world.clock, world.task_queue)
    other = world.worker()

    with pytest.raises(RuntimeError, match="Namespace"):
        await asyncio.wait_for(work([other, elsewhere.upkeep_worker()], asyncio.Event()), 30)

    assert not other.is_running


async def test_both_workers_of_a_process_stop_when_it_is_told_to(live_idle_world: World) -> None:
    workers, stop = [live_idle_world.worker(), live_idle_world.upkeep_worker()], asyncio.Event()
    working = asyncio.create_task(work(workers, stop))

    async def running() -> list[bool]:
        return [each.is_running for each in workers]

    await until(running, all)
    stop.set()
    await asyncio.wait_for(working, 30)
    assert await running() == [False, False]
