"""One run: everything is brought up, used and struck at, step by step; then it is left alone, and counted up."""

import asyncio
import json
import random
import secrets
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devstack.postgres import DATABASE
from tests.faults.blows import Blows
from tests.faults.load import Load, Receiver
from tests.faults.record import Record
from tests.faults.schedule import Fault, Step, schedule
from tests.faults.servers import Servers, own_folder
from tests.faults.tally import Tally, tally
from tests.stripe_server import served, stripe_server

_SHOWN = 20


@dataclass(frozen=True)
class Run:
    """What is to be done.

    Args:
        seed: the schedule follows from it.
        steps: of the load; each begins a story.
        seconds_a_step: how long lies between two.
        faults: which there are; each comes once in a round.
        every: there is a fault at every so many steps.
        cycle_seconds: how soon a friend's billing cycle ends, at least.
        settle_seconds: how long it may take until everything is at its end, when nobody strikes any more.
        at_most_seconds: after that the load ends, however many steps are left; without it all are made.
        keep: where record and logs are left; nowhere without it.
        may_mount: whether PostgreSQL may have a file system of its own, where that can be had.
    """

    seed: int
    steps: int
    seconds_a_step: float
    faults: Sequence[Fault]
    every: int
    cycle_seconds: float
    settle_seconds: float
    at_most_seconds: float | None = None
    keep: Path | None = None
    may_mount: bool = True

    def plan(self) -> list[Step]:
        """The schedule."""
        return schedule(self.seed, self.steps, self.faults, self.every)


@dataclass
class Outcome:
    """What came of a run.

    Args:
        seed: repeats it.
        happened: the faults that happened, each with its step, in order.
        missed: those that did not: the moment that they waited for did not come.
        tally: what was counted.
        check: what `referrals check` said, as far as it does not hold; its exit status first.
        problems: what went wrong with the stories themselves.
        statuses: how often those who use the program got which answer.
        disk: how it was made full.
        steps: how many steps of the load were made.
        seconds: how long all of it took.
    """

    seed: int
    happened: list[tuple[int, str]] = field(default_factory=list)
    missed: list[tuple[int, str]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    check: tuple[int, list[str]] = (-1, [])
    problems: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    disk: str = ""
    steps: int = 0
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, and nothing happened twice."""
        return self.tally.holds and self.check == (0, []) and not self.problems

    def document(self) -> dict[str, Any]:
        """For the machine."""
        survived = Counter(name for _, name in self.happened)
        return {
            "seed": self.seed,
            "holds": self.holds,
            "survived": dict(sorted(survived.items())) if self.holds else {},
            "steps": self.steps,
            "faults": len(self.happened),
            "missed": dict(Counter(name for _, name in self.missed)),
            "counted": dict(self.tally.counted),
            "answers": dict(self.statuses),
            "seconds": round(self.seconds),
        }


async def carry_out(run: Run, say: Callable[[str], None]) -> Outcome:
    """Bring everything up, strike, and count up.

    Args:
        run: what is to be done.
        say: hears what happens.
    """
    outcome, began = Outcome(run.seed), time.monotonic()
    secret = f"whsec_{b64encode(secrets.token_bytes(24)).decode()}"
    async with own_folder(run.keep) as folder, stripe_server() as stripe:
        record = Record(folder / "record.jsonl")
        receiver = Receiver(secret, record)
        async with served(receiver) as receiver_url:
            servers = Servers(folder, stripe.base, receiver_url, secret)
            say(f"seed {run.seed}: {run.steps} steps; bringing everything up")
            try:
                await servers.up(may_mount=run.may_mount)
                outcome.disk = servers.disk.name
                load = Load(
                    servers,
                    stripe,
                    record,
                    run.seed,
                    run.cycle_seconds,
                    reconciles_meanwhile=run.at_most_seconds is not None,
                )
                try:
                    blows = Blows(servers, load, stripe, receiver)
                    await _strike(run, blows, load, outcome, say)
                    await _count_up(run, servers, load, record, outcome, say)
                finally:
                    await load.close()
            finally:
                if run.keep is not None:
                    run.keep.mkdir(parents=True, exist_ok=True)
                    (run.keep / "record.jsonl").write_text(record.path.read_text(encoding="utf-8"), encoding="utf-8")
                await servers.down()
        if receiver.forged:
            outcome.problems.append(f"{receiver.forged} messages came to the backend with a signature that is wrong")
        record.close()
    outcome.seconds = time.monotonic() - began
    _report(outcome, say)
    return outcome


async def _strike(run: Run, blows: Blows, load: Load, outcome: Outcome, say: Callable[[str], None]) -> None:
    """The load, and with its steps the faults: each begins at its own step, when the one before is over."""
    chance = random.Random(run.seed)  # noqa: S311 - no secret
    striking: asyncio.Task[None] | None = None

    async def strike(step: int, fault: Fault, own_chance: random.Random) -> None:
        began = time.monotonic()
        happened = await blows.strike(fault, own_chance)
        (outcome.happened if happened else outcome.missed).append((step, fault.name))
        seconds = time.monotonic() - began
        say(f"step {step:4}  {'' if happened else 'MISSED: '}{fault.name} ({seconds:.1f} s, {load.open} stories open)")

    began = time.monotonic()
    for step in run.plan():
        if run.at_most_seconds is not None and time.monotonic() - began > run.at_most_seconds:
            break
        if step.fault is not None:
            if striking is not None:
                await striking
            striking = asyncio.create_task(strike(step.number, step.fault, random.Random(chance.random())))  # noqa: S311
            await asyncio.sleep(0)
        await load.has_room()
        load.begin(step)
        outcome.steps += 1
        await asyncio.sleep(run.seconds_a_step)
    if striking is not None:
        await striking


async def _count_up(
    run: Run, servers: Servers, load: Load, record: Record, outcome: Outcome, say: Callable[[str], None]
) -> None:
    """Let everything come to its end, and look whether it did, and as it should."""
    say(f"no faults any more; {load.open} stories go on")
    await load.ends()
    if not await load.reconcile():
        outcome.problems.append("`referrals reconcile` never came to an end")
    url, deadline = servers.postgres.superuser_url(DATABASE), time.monotonic() + run.settle_seconds
    outcome.tally = counted = await asyncio.to_thread(_counted, record.path, url, deadline)
    say("everything is at its end; `referrals check`" if counted.holds else "not everything came to its end")
    outcome.check = await _checked(load)
    while outcome.check != (0, []) and time.monotonic() < deadline:
        # What is late only has to come.
        await asyncio.sleep(1)
        outcome.check = await _checked(load)
    outcome.problems += load.problems
    if counted.counted["stories"] != outcome.steps:
        outcome.problems.append(f"{outcome.steps} stories began, and {counted.counted['stories']} came to their end")
    outcome.statuses = load.statuses


async def _checked(load: Load) -> tuple[int, list[str]]:
    status, said = await load.command("check", "--json", "--late", "1", "--untold", "1")
    return status, _broken(said) if status in (0, 1) else [said]


def _counted(record: Path, url: str, deadline: float) -> Tally:
    """The tally, as soon as it holds. What is wrong stays wrong; what is late only has to come until the deadline."""
    while True:
        counted = tally(record, url)
        if counted.holds or counted.wrong or time.monotonic() > deadline:
            return counted
        time.sleep(0.5)


def _broken(said: str) -> list[str]:
    try:
        findings = json.loads(said)["findings"]
    except (ValueError, KeyError):
        return [said]
    return [f"{one['name']}: {one['number']} ({', '.join(one['examples'])})" for one in findings if one["number"]]


def _report(outcome: Outcome, say: Callable[[str], None]) -> None:
    for title, found in (
        ("wrong", outcome.tally.wrong),
        ("never came", outcome.tally.pending),
        ("`referrals check` finds", outcome.check[1]),
        ("problem", outcome.problems),
    ):
        for one in found[:_SHOWN]:
            say(f"{title}: {one}")
        if len(found) > _SHOWN:
            say(f"{title}: and {len(found) - _SHOWN} more")
    survived = Counter(name for _, name in outcome.happened)
    say("faults survived:" if outcome.holds else "faults that happened:")
    for name, number in sorted(survived.items()):
        say(f"  {number:4}  {name}")
    for name, number in sorted(Counter(name for _, name in outcome.missed).items()):
        say(f"  moment did not come, {number}: {name}")
    say(f"the disk was made full by: {outcome.disk}")
    say("answers: " + ", ".join(f"{number} {status}" for status, number in sorted(outcome.statuses.items())))
    say("counted: " + ", ".join(f"{number} {name}" for name, number in outcome.tally.counted.items()))
    verdict = "nothing lost, nothing twice" if outcome.holds else "NOT AS IT HAS TO BE"
    say(f"{verdict}: seed {outcome.seed}, {len(outcome.happened)} faults, {outcome.seconds:.0f} s")
