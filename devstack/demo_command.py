"""`referrals demo`: which stack is filled, whether that is meant, and what is shown of it."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError
from temporalio.service import RPCError

from devstack.configuration import Environments, StackConfiguration, names_a_temporal
from devstack.demo import Demo, DemoError, Filled, Step
from devstack.errors import StackError
from devstack.portal import Deployment, deployment, new_session
from devstack.stack import data_folder
from program.identity import IdentityHash
from program.plans import PlansError, load_plans
from program.referral import Stage
from runtime.settings import DemoSettings, SettingsError
from runtime.temporal import connect
from workflows.client import ReferralRuns, UnreachableError

_STAGES = {
    Stage.CLICKED: "followed in the last days, nobody signed up yet",
    Stage.SIGNED_UP: "signed up, not paid yet",
    Stage.IN_REVIEW: "held for an operator",
    Stage.CREDITED: "both have their minutes",
    Stage.SETTLED: "both bonuses are over",
    Stage.REFUSED: "ended without a bonus: refused",
    Stage.LAPSED: "ended without a bonus: too late",
    Stage.VOIDED: "ended without a bonus: voided",
}


@dataclass(frozen=True)
class DemoOptions:
    """What `referrals demo` was told; see its help."""

    members: int
    seed: int
    data: Path | None
    sure: bool


@dataclass(frozen=True)
class _Stack:
    """The stack that is filled: its settings, how its Temporal and its starter are reached, and what it is called."""

    name: str
    settings: DemoSettings
    temporal: Mapping[str, str]
    starter: Deployment | None


@dataclass(frozen=True, slots=True)
class Shown:
    """What there is, for programs to read.

    Args:
        members: how many.
        seed: that gives them.
        added: whether they were added now.
        until: the end of their half year, UTC.
        stages: how many referrals there are at each stage.
        clicks: how often links were followed.
        minutes: bonus minutes to be used.
        runs: how many open referrals are in Temporal.
        behind: how many of those runs are not up to the ledger yet.
        accounts: of members to look at, by what they show.
    """

    members: int
    seed: int
    added: bool
    until: datetime
    stages: dict[str, int]
    clicks: int
    minutes: int
    runs: int
    behind: int
    accounts: dict[str, str]


def run(options: DemoOptions, *, silent: bool = False) -> Shown:
    """Fill the stack as told, and show what there is, unless silent; gives it, too.

    Raises:
        StackError: it cannot be filled, or nobody said that it may be; the message says why.
    """
    stack = chosen_stack(os.environ, data_folder(options.data), sure=options.sure)
    console = Console(highlight=False, stderr=silent)
    try:
        filled = asyncio.run(_fill(console, stack, options))
    except Exception as error:
        raise _in_words(error, stack) from None
    if not silent:
        _show(console, filled, options)
        _show_portals(console, filled, stack)
    people = filled.population
    return Shown(
        members=len(people.members),
        seed=options.seed,
        added=filled.added,
        until=filled.until,
        stages={stage.value: filled.stages.get(stage, 0) for stage in _STAGES},
        clicks=filled.clicks,
        minutes=filled.minutes,
        runs=len(filled.runs),
        behind=len(filled.behind),
        accounts={
            "star": people.star.account_id,
            "newcomer": people.newcomer.account_id,
            "guest": people.guest.account_id,
        },
    )


def chosen_stack(environment: Mapping[str, str], data: Path, *, sure: bool) -> _Stack:
    """The stack that the environment names, else the development stack of a folder.

    Raises:
        StackError: there is none, a setting is missing, or it is not the development stack's own and nobody is sure.
    """
    development = _development_stack(environment, data)
    if development is not None:
        return development
    if not environment.get("REFERRALS_DATABASE_URL") and not names_a_temporal(environment):
        raise StackError(
            f"there is no development stack with servers of its own in {data}: make run starts one, --data names "
            f"another folder, and REFERRALS_DATABASE_URL and TEMPORAL_ADDRESS name another stack"
        )
    if not sure:
        raise StackError(
            "the environment names a database or a Temporal that is not the development stack's own. This adds "
            "invented members, payments and bonuses, and the journal forgets nothing: they cannot be taken out again. "
            "Never fill a stack that real people use. Say --yes if it is meant"
        )
    try:
        settings: DemoSettings = DemoSettings.load()
    except SettingsError as error:
        raise StackError(str(error)) from None
    reached = environment.get("REFERRALS_URL") and environment.get("REFERRALS_API_KEY")
    starter = deployment(environment, data) if reached else None
    return _Stack("the stack that the environment names", settings, environment, starter)


def _development_stack(environment: Mapping[str, str], data: Path) -> _Stack | None:
    """The development stack of a folder, if it has servers of its own and the environment names no others."""
    if not (data / "dev.env").exists() or not (data / "run" / "stack.json").exists():
        return None
    configuration = StackConfiguration.read(data)
    if not (configuration.own_postgres and configuration.own_temporal):
        return None
    environments = Environments(configuration, environment)
    own = {
        "REFERRALS_DATABASE_URL": environments.settings["REFERRALS_DATABASE_URL"],
        "TEMPORAL_ADDRESS": environments.temporal_address,
    }
    # What dev.env says may well have been read into the environment; anything else names another stack.
    if any(environment.get(name, "") not in ("", value) for name, value in own.items()):
        return None
    if names_a_temporal({**environment, "TEMPORAL_ADDRESS": ""}):
        return None
    known: dict[str, Any] = {
        name: value
        for name in DemoSettings.model_fields
        if (value := environments.settings.get(f"REFERRALS_{name.upper()}"))
    }
    name = f"the development stack in {data}"
    return _Stack(name, DemoSettings(**known), environments.temporal, deployment({}, data))


async def _fill(console: Console, stack: _Stack, options: DemoOptions) -> Filled:
    settings = stack.settings
    plans = load_plans(settings.plans_file)
    hashes = IdentityHash(settings.identity_hash_key.get_secret_value())
    runs = ReferralRuns(await connect(environment=stack.temporal), settings.task_queue)
    with _progress(console) as step:
        demo = Demo(settings.database_url.get_secret_value(), plans, hashes, runs, step)
        try:
            return await demo.fill(options.seed, options.members)
        finally:
            await demo.close()


def _in_words(error: Exception, stack: _Stack) -> Exception:
    """What went wrong, for the person at the terminal; what nobody expected stays what it is."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    match error:
        case DemoError() | PlansError():
            return StackError(str(error))
        case UnreachableError() | RPCError() | RuntimeError():
            return StackError(f"Temporal of {stack.name} does not answer: is it running?")
        case SQLAlchemyError():
            # Never its own words: they may repeat what it was about.
            cause = type(getattr(error, "orig", None) or error).__name__
            return StackError(f"the database of {stack.name} cannot be used ({cause}): is it running, and migrated?")
        case _:
            return error


# What is shown


@contextmanager
def _progress(console: Console) -> Iterator[Step]:
    """A bar where there is a terminal; nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def step(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what)
            progress.update(bars[what], completed=done, total=of)

        yield step


def _show(console: Console, filled: Filled, options: DemoOptions) -> None:
    members, until = len(filled.population.members), filled.until.strftime("%Y-%m-%d %H:%M UTC")
    here = "half a year up to" if filled.added else "nothing added: it is there already, half a year up to"
    console.print(f"{members} members (seed {options.seed}), {here} {until}", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("referrals", no_wrap=True)
    table.add_column("", justify="right")
    table.add_column("")
    for stage, words in _STAGES.items():
        table.add_row(f"[bold green]{stage}[/]", str(filled.stages.get(stage, 0)), f"[dim]{words}[/]")
    console.print(table)
    console.print(
        f"links followed {filled.clicks} times, {filled.minutes} bonus minutes to be used, "
        f"{len(filled.runs)} open referrals in Temporal",
        soft_wrap=True,
    )
    if filled.behind:
        console.print(
            f"{len(filled.behind)} of their runs are not up to the ledger yet: is a worker running?", soft_wrap=True
        )


def _show_portals(console: Console, filled: Filled, stack: _Stack) -> None:
    """The dashboards of three members; each address works once."""
    people = filled.population
    shown = (
        (people.star, "has invited many"),
        (people.newcomer, "has a link, and invited nobody yet"),
        (people.guest, "never subscribed"),
    )
    for member, words in shown:
        who = f"{member.first_name} {words}"
        if stack.starter is None:
            console.print(f"{who}: {member.account_id}", soft_wrap=True)
            continue
        url = new_session(stack.starter, member.account_id).url
        console.print(f"{who} ({member.account_id}): [cyan]{escape(url)}[/]", soft_wrap=True)
    console.print(
        "each address opens once, within five minutes; referrals portal ACCOUNT gives another"
        if stack.starter
        else "with REFERRALS_URL and REFERRALS_API_KEY set, referrals portal ACCOUNT opens their dashboards",
        soft_wrap=True,
    )
