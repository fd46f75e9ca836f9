"""Brings the schema up to date while traffic runs, and tells which version a database has."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError

LOCK_TIMEOUT = timedelta(seconds=2)
"""A migration that cannot have its lock by then gives up and tries again later: all traffic queues behind who waits."""

STATEMENT_TIMEOUT = timedelta(seconds=10)
"""No statement of a migration holds its locks for longer, which is less than the application waits for an answer.

What has to take longer takes no such lock: `ledger.migrations.steps`.
"""

PATIENCE = timedelta(minutes=10)
"""How long a migration is tried again, and how long one waits for another."""

LONGEST_PAUSE = timedelta(seconds=10)
"""Between two tries, in which the traffic that queued up gets through."""

_ONE_AT_A_TIME = 7_243_905_211
_TRY_AGAIN = {"55P03": "a lock was not to be had", "40P01": "a deadlock was resolved"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Revision:
    """One step of the schema.

    Args:
        version: its name; later ones sort behind earlier ones.
        module: the migration.
    """

    version: str
    module: Any


@dataclass(frozen=True, slots=True)
class Pending:
    """What a database is, and what it lacks.

    Args:
        version: of its schema; none where no migration ran.
        wanted: the version that this code wants.
        migrations: the versions that are still to come, in order.
    """

    version: str | None
    wanted: str
    migrations: tuple[str, ...]


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def revisions() -> list[Revision]:
    """All steps of the schema, the first one first."""
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    return [Revision(script.revision, script.module) for script in reversed(list(scripts))]


@cache
def newest_version() -> str:
    """The version of the schema that this code wants."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def migrate(
    url: str,
    version: str = "head",
    *,
    lock_timeout: timedelta = LOCK_TIMEOUT,
    patience: timedelta = PATIENCE,
    say: Callable[[str], None] = log.warning,
    watch: Callable[[Connection], None] | None = None,
) -> str:
    """Bring the database at `url` to a version, the newest unless told; one migration runs at a time.

    Each migration is a transaction of its own. One that does not get a lock is tried again from there.

    Args:
        url: `postgresql+psycopg://…`, as the role that owns the schema.
        version: where to stop.
        lock_timeout: how long a statement waits for a lock, and keeps others waiting.
        patience: how long it is tried again.
        say: hears why it takes long.
        watch: is given the connection before anything is done.

    Returns:
        The version that the database has now.

    Raises:
        sqlalchemy.exc.DBAPIError: the database cannot be reached or refuses; a lock was not to be had in all that time.
        TimeoutError: another migration runs for all that time.
    """
    engine = create_engine(url, hide_parameters=True)
    until = time.monotonic() + patience.total_seconds()
    try:
        with engine.connect() as connection:
            _take_turn(connection, until, say)
            for name, limit in (("lock_timeout", lock_timeout), ("statement_timeout", STATEMENT_TIMEOUT)):
                connection.execute(text(f"SET {name} = '{round(limit.total_seconds() * 1000)}ms'"))
            connection.commit()
            config = _config()
            config.attributes["connection"] = connection
            if watch is not None:
                watch(connection)
            pause = lock_timeout
            while True:
                try:
                    command.upgrade(config, version)
                    connection.commit()
                except DBAPIError as error:
                    connection.rollback()
                    why = _TRY_AGAIN.get(getattr(error.orig, "sqlstate", None) or "")
                    if why is None or time.monotonic() + pause.total_seconds() > until:
                        raise
                    say(f"{why}; it is tried again in {pause.total_seconds():g} s")
                else:
                    return str(MigrationContext.configure(connection).get_current_revision())
                time.sleep(pause.total_seconds())
                pause = min(2 * pause, LONGEST_PAUSE)
    finally:
        engine.dispose()


def _take_turn(connection: Connection, until: float, say: Callable[[str], None]) -> None:
    # Asked for again and again instead of waited for: who waits has a snapshot, and CREATE INDEX CONCURRENTLY of the
    # one that runs would wait for that in turn.
    told = False
    while True:
        mine = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ONE_AT_A_TIME}).scalar_one()
        connection.commit()
        if mine:
            return
        if time.monotonic() > until:
            raise TimeoutError("another migration has not come to its end")
        if not told:
            say("another migration runs; it is waited for")
            told = True
        time.sleep(0.1)


def pending(url: str) -> Pending:
    """What a database still lacks. It only reads; the application's role will do.

    Raises:
        sqlalchemy.exc.DBAPIError: the database cannot be reached, or refuses.
    """
    engine = create_engine(url, hide_parameters=True, connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            known = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    versions = [revision.version for revision in revisions()]
    # One that is newer than this code lacks nothing.
    missing = versions if known is None else [version for version in versions if version > known]
    return Pending(known, versions[-1], tuple(missing))
