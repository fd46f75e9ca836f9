"""Replays the histories of a namespace against the code at hand: whether a deploy would leave a run behind."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from google.protobuf.json_format import ParseError
from rich.console import Console
from temporalio.client import Client, WorkflowExecution, WorkflowHistory
from temporalio.converter import DataConverter
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from cli.answers import first_line, row, table
from workflows.messages import REFERRAL_STAGE, WORKFLOW
from workflows.payloads import DATA_CONVERTER
from workflows.registry import REFERRALS, UPKEEP, workflow_runner


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that the code at hand cannot go on with.

    Args:
        workflow_id: of the run.
        run_id: which of several.
        workflow: its type.
        status: `RUNNING`, or how it ended.
        stage: of the referral, where it is one's.
        verdict: `nondeterminism` where the code takes another way than the history has; else `error`.
        words: what was found, in a line.
    """

    workflow_id: str
    run_id: str
    workflow: str
    status: str
    stage: str | None
    verdict: str
    words: str


@dataclass
class Replayed:
    """What a replay came to.

    Args:
        replayed: how many histories were replayed.
        not_begun: how many runs have done nothing yet, so that there is nothing to replay.
        gone: how many runs were closed and forgotten between being listed and being read.
        failures: those that the code at hand cannot go on with.
    """

    replayed: int = 0
    not_begun: int = 0
    gone: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """How many runs were looked at."""
        return self.replayed + self.not_begun + self.gone


@dataclass(frozen=True, slots=True)
class Extent:
    """Which runs are replayed.

    Args:
        recent: closed runs that ended no longer ago than that; all open ones are, but for mere clicks.
        clicks: how many of the runs that wait for a signup, the newest: most have no history yet.
        at_once: how many histories are read and replayed at a time.
        query: narrows it down further, in the language of Temporal's lists.
    """

    recent: timedelta
    clicks: int
    at_once: int
    query: str | None = None


async def replay(client: Client, extent: Extent, report: Callable[[Replayed], None]) -> Replayed:
    """Replay.

    Args:
        client: connected to the namespace.
        extent: which.
        report: hears how far it is, after each.

    Raises:
        RPCError: Temporal could not be reached, or refused, the query for example.
    """
    replayed = Replayed()
    listed: asyncio.Queue[WorkflowExecution | None] = asyncio.Queue(extent.at_once * 2)

    async def list_them() -> None:
        async for run in _runs(client, extent):
            await listed.put(run)
        for _ in range(extent.at_once):
            await listed.put(None)

    async def take_them() -> None:
        while (run := await listed.get()) is not None:
            await _one(client, run, replayed)
            report(replayed)

    tasks = [asyncio.create_task(work) for work in (list_them(), *(take_them() for _ in range(extent.at_once)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    replayed.failures.sort(key=lambda failure: (failure.workflow_id, failure.run_id))
    return replayed


async def _runs(client: Client, extent: Extent) -> AsyncIterator[WorkflowExecution]:
    types = ", ".join(f"'{name}'" for name in (*REFERRALS, *UPKEEP))
    narrower = f" AND ({extent.query})" if extent.query else ""
    ours = f"WorkflowType IN ({types}){narrower}"
    mere_click = f"WorkflowType = '{WORKFLOW}' AND {REFERRAL_STAGE.name} = 'clicked'"
    since = (datetime.now(UTC) - extent.recent).isoformat(timespec="seconds").replace("+00:00", "Z")
    # Of all open ones, those that are no mere click; a click that lapsed has done something.
    async for run in client.list_workflows(f"{ours} AND ExecutionStatus = 'Running' AND WorkflowType != '{WORKFLOW}'"):
        yield run
    beyond = f"WorkflowType = '{WORKFLOW}' AND {REFERRAL_STAGE.name} != 'clicked'"
    async for run in client.list_workflows(f"{ours} AND ExecutionStatus = 'Running' AND {beyond}"):
        yield run
    if extent.clicks:
        clicks = f"{ours} AND ExecutionStatus = 'Running' AND {mere_click}"
        async for run in client.list_workflows(clicks, limit=extent.clicks):
            yield run
    if extent.recent:
        async for run in client.list_workflows(f"{ours} AND ExecutionStatus != 'Running' AND CloseTime > '{since}'"):
            yield run


async def _one(client: Client, run: WorkflowExecution, replayed: Replayed) -> None:
    try:
        history = await client.get_workflow_handle(run.id, run_id=run.run_id).fetch_history()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        replayed.gone += 1
        return
    if not any(event.HasField("workflow_task_completed_event_attributes") for event in history.events):
        replayed.not_begun += 1
        return
    result = await _replayer(client.data_converter).replay_workflow(history, raise_on_replay_failure=False)
    replayed.replayed += 1
    if result.replay_failure is not None:
        replayed.failures.append(_failure(run, result.replay_failure))


async def replay_file(file: Path) -> str | None:
    """Replay a recorded history; in words what the code at hand cannot go on with, none where it can.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no history.
    """
    history = await asyncio.to_thread(_read, file)
    replayer = _replayer(DATA_CONVERTER)
    failure = (await replayer.replay_workflow(history, raise_on_replay_failure=False)).replay_failure
    return None if failure is None else first_line(failure)


def _read(file: Path) -> WorkflowHistory:
    try:
        return WorkflowHistory.from_json(file.stem, file.read_text(encoding="utf-8"))
    except (ParseError, ValueError) as error:
        raise ValueError(f"{file} is no history: {first_line(error)}") from None


def _replayer(converter: DataConverter) -> Replayer:
    workflows = [*REFERRALS.values(), *UPKEEP.values()]
    return Replayer(workflows=workflows, data_converter=converter, workflow_runner=workflow_runner())


def _failure(run: WorkflowExecution, error: Exception) -> Failure:
    stage = run.typed_search_attributes.get(REFERRAL_STAGE)
    return Failure(
        run.id,
        run.run_id,
        run.workflow_type,
        run.status.name if run.status else "UNKNOWN",
        stage,
        "nondeterminism" if isinstance(error, NondeterminismError) else "error",
        first_line(error),
    )


def render(replayed: Replayed, to: Console) -> None:
    """Show the verdict, and each run that would be left behind."""
    if replayed.failures:
        failures = table("run", "of", "status", "stage", "verdict", "")
        for each in replayed.failures:
            row(
                failures,
                f"{each.workflow_id} {each.run_id}",
                each.workflow,
                each.status.lower(),
                each.stage,
                each.verdict,
                each.words,
            )
        to.print(failures)
    to.print(
        f"{replayed.replayed} replayed, {len(replayed.failures)} failed; "
        f"{replayed.not_begun} have done nothing yet, {replayed.gone} were gone"
    )
