"""`referrals dev`: the stack, one referral through it, and what is shown of both."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from devstack.configuration import StackConfiguration, names_a_temporal
from devstack.errors import StackError
from devstack.interruption import Interrupted, Interruption
from devstack.stack import Stack, data_folder
from devstack.stripe_events import PRICES_IN_CENTS
from devstack.temporal import find_binary
from devstack.walk import Outcome, Target, referral_display, walk_referral

INTERRUPTED = 130
"""The exit status of a walk that somebody cut short, as a shell has it for Ctrl-C."""


@dataclass(frozen=True)
class DevOptions:
    """What `referrals dev` was told; see its help."""

    data: Path | None
    port: int
    temporal_port: int
    ui_port: int
    postgres_port: int
    metrics_port: int
    temporal: str | None
    once: bool
    walk: bool
    plan: str
    cycle_seconds: float


def run(options: DevOptions) -> int:
    """Run the stack as told.

    Returns:
        The exit status: with `once` 0 only if the walk went as the rules have it, else 0 unless something failed.
    """
    console = Console(highlight=False)
    interruption = Interruption()
    interruption.listen()
    outcome: Outcome | None = None
    try:
        with Stack(_configuration(options), interruption, lambda line: _say(console, line)) as stack:
            _show_parts(console, stack)
            if options.walk:
                outcome = _walk(console, stack, options, interruption)
            if not options.once:
                if outcome is not None and outcome.portal:
                    _show_portal(console, outcome, options.data)
                _say(console, f"up; settings for scripts are in {_short(stack.configuration.data / 'dev.env')}")
                _say(console, "Ctrl-C stops everything")
                stack.keep_up()
    except Interrupted:
        _say(console, "stopped")
        if options.once:
            return INTERRUPTED
    except StackError as error:
        typer.echo(f"referrals dev: {error}", err=True)
        return 1
    if options.once and outcome is not None:
        typer.echo(json.dumps(outcome.document()))
    return 0 if outcome is None or outcome.as_it_should_be else 1


def _configuration(options: DevOptions) -> StackConfiguration:
    if options.plan not in PRICES_IN_CENTS:
        raise StackError(f"there is no plan {options.plan!r}: choose one of {', '.join(PRICES_IN_CENTS)}")
    own_temporal = not names_a_temporal(os.environ)
    return StackConfiguration(
        data=data_folder(options.data),
        port=options.port,
        temporal_port=options.temporal_port,
        ui_port=options.ui_port,
        postgres_port=options.postgres_port,
        metrics_port=options.metrics_port,
        temporal_binary=find_binary(options.temporal) if options.temporal and own_temporal else None,
        own_postgres=not os.environ.get("REFERRALS_DATABASE_URL"),
        own_temporal=own_temporal,
    )


def _walk(console: Console, stack: Stack, options: DevOptions, interruption: Interruption) -> Outcome:
    target = Target(
        url=stack.url,
        api_key=stack.api_key,
        stripe_webhook_secret=stack.stripe_webhook_secret,
        ui_url=stack.environments.ui_url,
        namespace=stack.environments.namespace,
    )
    with referral_display(console) as display:
        outcome = walk_referral(target, options.plan, options.cycle_seconds, display, interruption.sleep)
    if outcome.problem:
        typer.echo(f"referrals dev: the walk failed: {outcome.problem}", err=True)
    return outcome


def _show_parts(console: Console, stack: Stack) -> None:
    if not console.is_terminal:
        for part in stack.parts:
            typer.echo(f"{part.name}: {part.address}" + (f" ({part.remark})" if part.remark else ""))
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for part in stack.parts:
        table.add_row(f"[bold]{part.name}[/]", f"[cyan]{part.address}[/]", f"[dim]{part.remark}[/]")
    console.print(table)


def _show_portal(console: Console, outcome: Outcome, data: Path | None) -> None:
    """The dashboard of the walk's referrer, by an address that nobody has opened yet."""
    # Printed whole: an address that is broken in two cannot be clicked.
    console.print(
        f"Rita's dashboard (opens once, within five minutes): [cyan]{escape(outcome.portal or '')}[/]", soft_wrap=True
    )
    where = f" --data {data}" if data else ""
    _say(console, f"another address of it: .venv/bin/referrals portal {outcome.referrer}{where}")


def _say(console: Console, line: str) -> None:
    if console.is_terminal:
        console.print(line, style="dim", markup=False)
    else:
        typer.echo(line)


def _short(path: Path) -> Path:
    """As seen from the current folder, where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
