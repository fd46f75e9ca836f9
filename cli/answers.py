"""How the commands answer: one JSON document or text on stdout, errors on stderr, and how the process ends."""

import asyncio
import json
import sys
from collections.abc import Coroutine
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Answer = TypeVar("Answer")

WIDEST = 160
"""How wide text is where nobody sees how wide it may be: a pipe, a file."""


def fail(message: object, status: int = 1) -> typer.Exit:
    """Say on stderr what is wrong; the exit to raise."""
    typer.echo(f"referrals: {message}", err=True)
    return typer.Exit(status)


def say(message: str) -> None:
    """Tell a person who waits something, on stderr: stdout is for the answer."""
    typer.echo(message, err=True)


def perform(work: Coroutine[Any, Any, Answer], *, status: int = 1) -> Answer:
    """Carry out the work of a command, and tell in words what it needs and does not have.

    Args:
        work: what the command does.
        status: how the process ends where that could not be done.

    Raises:
        typer.Exit: it could not; the reason has been told.
    """
    from sqlalchemy.exc import SQLAlchemyError
    from temporalio.service import RPCError

    from ledger.database import TransactionFailedError
    from program.plans import PlansError
    from runtime.settings import SettingsError
    from runtime.temporal import keep_quiet
    from workflows.client import UnreachableError

    keep_quiet()
    try:
        return asyncio.run(work)
    except (SettingsError, PlansError) as error:
        raise fail(error, status) from None
    except (UnreachableError, RPCError) as error:
        raise fail(f"Temporal: {error}", status) from None
    except TransactionFailedError as error:
        raise fail(f"the database: {error}", status) from None
    except SQLAlchemyError as error:
        raise fail(f"the database: {first_line(getattr(error, 'orig', None) or error)}", status) from None
    except RuntimeError as error:
        raise fail(error, status) from None


def first_line(error: object) -> str:
    """The first line of what an error says: further ones of a database's may repeat what is stored (rule 24)."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def document(value: Any) -> None:
    """Print one JSON document on stdout; times are ISO 8601, UTC."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def console(*, stderr: bool = False) -> Console:
    """Where text for people goes; nothing in it is taken for markup."""
    shown = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not shown.is_terminal:
        shown = Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=WIDEST)
    return shown


def table(*columns: str, title: str | None = None) -> Table:
    """A table without lines, whose cells fold instead of losing what they say."""
    made = Table(
        box=None, title=title, title_justify="left", title_style="bold", show_header=any(columns), pad_edge=False
    )
    for name in columns:
        made.add_column(name, overflow="fold", header_style="dim")
    return made


def row(to: Table, *cells: object) -> None:
    """Add a row of whatever there is to say; nothing is taken for markup, and what is not there stays empty."""
    to.add_row(*(cell if isinstance(cell, Text) else Text(shown(cell)) for cell in cells))


def shown(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, list | tuple):
        return ", ".join(shown(one) for one in value)
    return str(value)
