"""Recorded histories are replayed: a change of the workflow that a run under way would not survive fails here.

The histories of every released version stand under `tests/histories/<version>/`, one for each way that a referral can
go (`tests/scenarios.py`), and are never changed. To record those of the version in `pyproject.toml`:

    .venv/bin/pytest tests/test_replay.py --record-histories

and the history of one run of any namespace (`TEMPORAL_ADDRESS` …):

    .venv/bin/referrals record-history referral-0123456789abcdef tests/histories/<version>/<name>.json
"""

import asyncio
import base64
import binascii
import json
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowExecutionStatus, WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from cli.record import RECORDED, record_history
from runtime.settings import PROJECT
from tests.conftest import BIN
from tests.impure_workflows import AsksTheClock, DrawsANumber, ReadsAFile
from tests.scenarios import SCENARIOS, SECOND, Scenario, Trouble, credited, signed_up
from tests.support import World, until
from workflows import messages
from workflows.messages import PaymentReported, ReferralStart, ReferralState
from workflows.payloads import DATA_CONVERTER
from workflows.referral import ReferralWorkflow
from workflows.registry import sandbox, workflow_runner

HISTORIES = PROJECT / "tests" / "histories"
CONTINUED = "settled_in_several_runs"
GENERATION_OF_TODAY = HISTORIES / version("kallyai-referrals") / "settled_referrer_first.json"
HOUR, MOMENT = timedelta(hours=1), timedelta(milliseconds=1)


def recorded() -> list[Path]:
    return sorted(HISTORIES.glob("*/*.json"))


every_recorded_run = pytest.mark.parametrize("file", recorded(), ids=lambda file: f"{file.parent.name}-{file.stem}")


def read(file: Path) -> WorkflowHistory:
    return WorkflowHistory.from_json(file.stem, file.read_text(encoding="utf-8"))


def replayer(*workflows: type, sandboxed: bool = True) -> Replayer:
    return Replayer(
        workflows=workflows or [ReferralWorkflow],
        data_converter=DATA_CONVERTER,
        workflow_runner=sandbox() if sandboxed else workflow_runner(),
    )


@every_recorded_run
async def test_a_recorded_run_can_still_be_replayed(file: Path) -> None:
    await replayer().replay_workflow(read(file))


async def test_every_way_that_a_referral_can_go_is_on_record(
    live_idle_world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each scenario is lived through now, and what is recorded of it can be replayed."""
    folder = record_into(request, tmp_path)
    world, trouble, turns = live_idle_world, Trouble(), asyncio.Semaphore(8)

    async def in_turn(tell: Scenario) -> str:
        async with turns:
            return await tell(world, trouble)

    async with world.worker(trouble):
        ids = await asyncio.gather(*map(in_turn, SCENARIOS.values()))
        for name, referral_id in zip(SCENARIOS, ids, strict=True):
            await record_history(world.environment.client, messages.workflow_id(referral_id), folder / f"{name}.json")
    for name in SCENARIOS:
        await replayer().replay_workflow(read(folder / f"{name}.json"))
    assert {file.stem for file in recorded()} >= set(SCENARIOS), "a scenario has no recorded history"


async def test_a_run_that_went_on_in_others_is_on_record(
    short_histories_world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = record_into(request, tmp_path)
    world = short_histories_world
    client = world.environment.client
    async with world.worker():
        referral_id, referrer, friend = await signed_up(world)
        handle = world.handle(referral_id)
        first = (await handle.describe()).run_id
        for number in range(1, 4):
            await handle.signal(messages.PAYMENT, PaymentReported(f"evt_{number}"))
            await until(lambda: world.state(referral_id), lambda state, n=number: state.payments_looked_at == n)  # type: ignore[misc]
        await until(handle.describe, lambda described: described.run_id != first)
        await credited(world, referral_id, referrer, friend, 3 * SECOND, 5 * SECOND)
        await world.outcome(referral_id)
        runs = [run async for run in client.list_workflows(f"WorkflowId = '{handle.id}'")]
        runs.sort(key=lambda run: run.start_time)
        assert {run.status for run in runs[:-1]} == {WorkflowExecutionStatus.CONTINUED_AS_NEW}
        for number, run in enumerate(runs, start=1):
            await record_history(client, run.id, folder / f"{CONTINUED}_{number}.json", run.run_id)
    for file in folder.glob(f"{CONTINUED}_*.json"):
        await replayer().replay_workflow(read(file))
    assert any(file.stem.startswith(CONTINUED) for file in recorded()), "a scenario has no recorded history"


async def test_the_command_records_any_run_of_a_namespace(
    live_idle_world: World, dev_server: str, tmp_path: Path
) -> None:
    world, file = live_idle_world, tmp_path / "new" / "click.json"
    click = await world.click(await world.subscriber())

    async def referrals(*arguments: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            BIN / "referrals",
            "record-history",
            *arguments,
            env={**os.environ, "TEMPORAL_ADDRESS": dev_server},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        return process.returncode, said.decode()

    workflow_id = messages.workflow_id(click.referral_id)
    status, said = await referrals(workflow_id, str(file), "--json")
    assert status == 0, said
    assert json.loads(said) == {"workflow_id": workflow_id, "file": str(file), "events": 1}
    [event] = read(file).events
    assert event.workflow_execution_started_event_attributes.identity == RECORDED
    status, said = await referrals("referral-of-nobody", str(file))
    assert status == 1
    assert said.startswith("referrals: ")
    assert "Traceback" not in said


def record_into(request: pytest.FixtureRequest, otherwise: Path) -> Path:
    if request.config.getoption("--record-histories"):
        return HISTORIES / version("kallyai-referrals")
    return otherwise


def _endings() -> Iterator[tuple[str, str | None]]:
    for file in recorded():
        last = read(file).events[-1]
        kind = str(last.WhichOneof("attributes")).removeprefix("workflow_execution_").removesuffix("_event_attributes")
        stage = None
        if kind == "completed":
            [payload] = last.workflow_execution_completed_event_attributes.result.payloads
            stage = json.loads(payload.data)["stage"]
        yield kind, stage


def test_the_recorded_runs_end_in_every_way_that_there_is() -> None:
    assert set(_endings()) == {
        ("completed", "settled"),
        ("completed", "lapsed"),
        ("completed", "refused"),
        ("completed", "voided"),
        ("completed", "credited"),
        ("continued_as_new", None),
        ("canceled", None),
    }


@workflow.defn(name=messages.WORKFLOW)
class Altered(ReferralWorkflow):
    """The same with one more command, and no gate."""

    @workflow.init
    def __init__(self, start: ReferralStart) -> None:
        super().__init__(start)

    @workflow.run
    async def run(self, start: ReferralStart) -> ReferralState:
        workflow.upsert_memo({"one_more": "command"})
        return await super().run(start)


@workflow.defn(name=messages.WORKFLOW)
class Gated(ReferralWorkflow):
    """The same change behind a gate."""

    @workflow.init
    def __init__(self, start: ReferralStart) -> None:
        super().__init__(start)

    @workflow.run
    async def run(self, start: ReferralStart) -> ReferralState:
        if workflow.patched("one-more-command"):
            workflow.upsert_memo({"one_more": "command"})
        return await super().run(start)


@every_recorded_run
async def test_a_change_of_the_commands_without_a_gate_is_noticed(file: Path) -> None:
    with pytest.raises(NondeterminismError):
        await replayer(Altered, sandboxed=False).replay_workflow(read(file))
    await replayer(Gated, sandboxed=False).replay_workflow(read(file))


@pytest.mark.parametrize("workflow_type", [AsksTheClock, ReadsAFile, DrawsANumber])
async def test_code_that_asks_the_machine_is_noticed(workflow_type: type) -> None:
    with pytest.raises(RuntimeError, match="Cannot access"):
        await replayer(workflow_type).replay_workflow(read(GENERATION_OF_TODAY))


@pytest.mark.parametrize("after_the_end", [-HOUR, -MOMENT, 0 * MOMENT, MOMENT, HOUR], ids=str)
async def test_rule_7_a_replay_whose_clock_says_another_time_sleeps_until_the_same_ends(
    after_the_end: timedelta,
) -> None:
    """A replay's clock may differ after a local activity; the timer that a run started must be started all the same.

    It differs by milliseconds where somebody looked at the run with a query while the step was under way.
    """
    history = json.loads(GENERATION_OF_TODAY.read_text(encoding="utf-8"))
    for event in history["events"]:
        marker = event.get("markerRecordedEventAttributes")
        result = marker and _payload(marker["details"]["result"])
        if marker and result.get("expires_at"):
            ends = [datetime.fromisoformat(end) for end in result["expires_at"].values()]
            data = _payload(marker["details"]["data"])
            data["complete_time"] = _timestamp(min(ends) + after_the_end)
            marker["details"]["data"]["payloads"][0]["data"] = base64.b64encode(json.dumps(data).encode()).decode()
            break
    else:
        raise AssertionError("no credit is recorded")
    await replayer().replay_workflow(WorkflowHistory.from_json("referral-0", json.dumps(history)))


def _payload(payloads: Any) -> Any:
    return json.loads(base64.b64decode(payloads["payloads"][0]["data"]))


def _timestamp(at: datetime) -> dict[str, int]:
    return {"seconds": int(at.timestamp()), "nanos": at.microsecond * 1000}


def _texts(value: Any) -> Iterator[str]:
    """Every text in a history, payloads decoded."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(one)
            if key == "data" and isinstance(one, str):
                try:
                    yield base64.b64decode(one, validate=True).decode()
                except (binascii.Error, UnicodeDecodeError):
                    continue
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str):
        yield value


@every_recorded_run
def test_rule_24_a_recorded_history_names_no_person_and_no_machine(file: Path) -> None:
    document = json.loads(file.read_text(encoding="utf-8"))
    texts = list(_texts(document))
    assert RECORDED in texts
    for text in texts:
        assert "@" not in text, text
        assert "example.com" not in text, text
        assert not text.startswith("/"), text
        assert str(PROJECT) not in text, text
        assert "127.0.0.1" not in text, text
