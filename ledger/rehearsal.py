"""Tries migrations on a copy with data: what they hold back, and whether everything that was there is still there.

A migration may name, as attributes of its module, what it is allowed: `changes`, the columns or tables whose old values
it changes or takes away (`("account.first_name", "old_table")`), and `small`, the tables that have so few rows that
it takes no time to go through them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, event

from ledger.migrate import LOCK_TIMEOUT, migrate, pending, revisions

_SHUTS_OUT = ("ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock")
"""The locks that keep writers out."""

_LOCKS = """
    SELECT relation, mode FROM pg_locks
    WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted AND mode = ANY(%s) AND relation = ANY(%s)
"""
_WORK = """
    SELECT relid, seq_scan, n_tup_upd + n_tup_del FROM pg_stat_xact_user_tables WHERE relid = ANY(%s)
"""
_TABLES = """
    SELECT oid, relname, relfilenode FROM pg_class
    WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND relname <> 'alembic_version'
    ORDER BY relname
"""

Value = tuple[int, str]
"""How many rows there are, and a sum over a column of all of them, each with its row's key."""


@dataclass(frozen=True, slots=True)
class Copied:
    """All rows of a table, in PostgreSQL's text format.

    Args:
        table: its name.
        columns: their names, in order.
        rows: as COPY writes them.
    """

    table: str
    columns: tuple[str, ...]
    rows: str


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole ledger of a released schema.

    Args:
        schema: the version of its schema.
        recorded_at: when, by the ledger's clock, UTC.
        tables: all of them, those that others refer to first.
    """

    schema: str
    recorded_at: datetime
    tables: tuple[Copied, ...]

    def document(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "schema": self.schema,
            "recorded_at": self.recorded_at.isoformat(),
            "tables": {each.table: {"columns": each.columns, "rows": each.rows} for each in self.tables},
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Recording":
        """What was recorded.

        Raises:
            KeyError, ValueError: it is no recording.
        """
        tables = document["tables"].items()
        return cls(
            document["schema"],
            datetime.fromisoformat(document["recorded_at"]),
            tuple(Copied(name, tuple(each["columns"]), each["rows"]) for name, each in tables),
        )


@dataclass
class Rehearsed:
    """What became of a copy.

    Args:
        began_at: the schema's version before; none where there was none.
        ended_at: after.
        applied: the migrations that ran.
        rows: how many there are in all tables that were there before.
        flaws: what would keep traffic out, and what is no longer as it was.
    """

    began_at: str | None
    ended_at: str
    applied: list[str] = field(default_factory=list)
    rows: int = 0
    flaws: list[str] = field(default_factory=list)


def record(url: str) -> Recording:
    """Record a whole ledger. Only one of invented people may be kept in a file.

    Raises:
        psycopg.Error: the database cannot be reached, or refuses.
    """
    with psycopg.connect(_plain(url)) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        names = [row[1] for row in connection.execute(_TABLES)]
        tables = tuple(_copy(connection, name) for name in _in_order(connection, names))
        schema, now = _one(connection, "SELECT version_num, ledger_now() FROM alembic_version")
        return Recording(schema, now.astimezone(UTC), tables)


def restore(url: str, recording: Recording, version: str) -> None:
    """Make an empty database a ledger of a version of the schema, with as much of a recording as that can hold.

    Args:
        url: of the database, as its owner.
        recording: of that version, or of a later one.
        version: of the schema.

    Raises:
        psycopg.Error: the database cannot be reached, or refuses: the recording does not fit the version.
    """
    migrate(url, version)
    with psycopg.connect(_plain(url)) as connection:
        there = [row[1] for row in connection.execute(_TABLES)]
        for name in there:
            connection.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(sql.Identifier(name)))
        for each in recording.tables:
            if each.table in there:
                _paste(connection, each)
        for name in there:
            connection.execute(sql.SQL("ALTER TABLE {} ENABLE TRIGGER USER").format(sql.Identifier(name)))


def rehearse(url: str, *, baseline: str, lock_timeout: timedelta = LOCK_TIMEOUT) -> Rehearsed:
    """Migrate a copy to the newest version, step by step, and look at what every step does.

    Args:
        url: of the copy, as its owner.
        baseline: migrations up to this version never run on a database with traffic; what they hold back is not
            looked at.
        lock_timeout: as of :func:`migrate`.

    Raises:
        sqlalchemy.exc.DBAPIError, psycopg.Error: a migration fails.
    """
    known = pending(url)
    done = Rehearsed(known.version, known.version or "")
    after = imprint(url)
    for revision in revisions():
        if revision.version not in known.migrations:
            continue
        watched = _Watched(getattr(revision.module, "small", ()))
        watch = watched.begin if revision.version > baseline else None
        done.ended_at = migrate(url, revision.version, lock_timeout=lock_timeout, watch=watch)
        done.applied.append(revision.version)
        done.flaws += [f"migration {revision.version}: {words}" for words in watched.flaws]
        before, after = after, imprint(url)
        lost = differences(before, after, getattr(revision.module, "changes", ()))
        done.flaws += [f"migration {revision.version}: {words}" for words in lost]
    done.rows = sum(number for columns in after.values() for number, _ in list(columns.values())[:1])
    return done


def imprint(url: str) -> dict[str, dict[str, Value]]:
    """What is in every column of every table, in a form that can be compared with what is there later.

    Raises:
        psycopg.Error: the database cannot be reached, or refuses.
    """
    seen: dict[str, dict[str, Value]] = {}
    with psycopg.connect(_plain(url)) as connection:
        # Whatever the server's settings are, a value has one text.
        connection.execute("SET TIME ZONE 'UTC'")
        for _, table, _ in connection.execute(_TABLES).fetchall():
            columns = [name for (name,) in connection.execute(_COLUMNS, [table])]
            key = sql.SQL(", ").join(map(sql.Identifier, (name for (name,) in connection.execute(_KEY, [table]))))
            sums = sql.SQL(", ").join(
                sql.SQL("coalesce(sum(hashtextextended(ROW({}, {})::text, 0)), 0)::text").format(
                    key, sql.Identifier(name)
                )
                for name in columns
            )
            counted = sql.SQL("SELECT count(*), {} FROM {}").format(sums, sql.Identifier(table))
            found = connection.execute(counted).fetchone() or ()
            seen[table] = {name: (found[0], one) for name, one in zip(columns, found[1:], strict=True)}
    return seen


def differences(
    before: Mapping[str, Mapping[str, Value]], after: Mapping[str, Mapping[str, Value]], allowed: Sequence[str] = ()
) -> list[str]:
    """What of `before` is not there any more as it was; what is new is no difference."""
    found = []
    for table, columns in before.items():
        if table in allowed:
            continue
        if table not in after:
            found.append(f"the table {table} is gone")
            continue
        for column, (number, total) in columns.items():
            name = f"{table}.{column}"
            if name in allowed:
                continue
            if column not in after[table]:
                found.append(f"the column {name} is gone")
            elif after[table][column][0] != number:
                found.append(f"{table} has {after[table][column][0]} rows, and had {number}")
                break
            elif after[table][column][1] != total:
                found.append(f"values of {name} are not what they were")
    return found


class _Watched:
    """Looks after each statement of a migration at what it did and what it holds."""

    def __init__(self, small: Sequence[str]) -> None:
        self.flaws: list[str] = []
        self._small = small
        self._tables: dict[int, tuple[str, int]] = {}
        self._work: dict[int, tuple[int, int]] = {}

    def begin(self, connection: Connection) -> None:
        """Watch what is executed on a connection from now on."""
        with _raw(connection).cursor() as cursor:
            cursor.execute(_TABLES)
            self._tables = {oid: (name, file) for oid, name, file in cursor if name not in self._small}
            cursor.execute(_WORK, [list(self._tables)])
            self._work = {oid: (scans, changed) for oid, scans, changed in cursor}
        connection.commit()
        event.listen(connection, "after_cursor_execute", self._executed)

    def _executed(self, connection: Connection, *_: object) -> None:
        raw = _raw(connection)
        with raw.cursor() as cursor:
            oids = list(self._tables)
            cursor.execute(_LOCKS, [list(_SHUTS_OUT), oids])
            held: dict[int, str] = dict(cursor.fetchall())
            cursor.execute(_WORK, [oids])
            work = {oid: (scans, changed) for oid, scans, changed in cursor.fetchall()}
            cursor.execute(_TABLES)
            files = {oid: file for oid, _, file in cursor.fetchall()}
        for oid, (name, file) in self._tables.items():
            known = self._work.get(oid, (0, 0))
            scanned, changed = (now > then for now, then in zip(work.get(oid, (0, 0)), known, strict=True))
            if files.get(oid, file) != file:
                self._say(f"{name} is written anew while nobody may read it")
                self._tables[oid] = (name, files[oid])
            elif scanned and oid in held:
                self._say(f"all of {name} is read under a lock ({held[oid]}) that keeps writers out")
            elif scanned and changed and not raw.autocommit:
                self._say(f"rows of {name} are changed all at once: fill() does so some at a time")
        self._work |= work

    def _say(self, words: str) -> None:
        if words not in self.flaws:
            self.flaws.append(words)


_COLUMNS = """
    SELECT column_name FROM information_schema.columns
    WHERE table_schema = current_schema() AND table_name = %s AND is_generated = 'NEVER' ORDER BY ordinal_position
"""
_KEY = """
    SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey)
    WHERE indisprimary AND indrelid = to_regclass(%s) ORDER BY attnum
"""
_REFERENCES = """
    SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint
    WHERE contype = 'f' AND connamespace = current_schema()::regnamespace AND conrelid <> confrelid
"""


def _raw(connection: Connection) -> "psycopg.Connection[Any]":
    raw = connection.connection.dbapi_connection
    if not isinstance(raw, psycopg.Connection):
        raise TypeError(f"{type(raw).__name__} is no connection of psycopg")
    return raw


def _plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def _one(connection: "psycopg.Connection[Any]", statement: str) -> Any:
    return connection.execute(statement).fetchone() or ()


def _in_order(connection: "psycopg.Connection[Any]", names: Sequence[str]) -> list[str]:
    """Tables, those that others refer to first."""
    needs: dict[str, set[str]] = {name: set() for name in names}
    for table, needed in connection.execute(_REFERENCES):
        needs[table].add(needed)
    ordered: list[str] = []
    while free := sorted(name for name, needed in needs.items() if name not in ordered and needed <= set(ordered)):
        ordered += free
    return ordered


def _copy(connection: "psycopg.Connection[Any]", table: str) -> Copied:
    columns = tuple(name for (name,) in connection.execute(_COLUMNS, [table]))
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    key = sql.SQL(", ").join(map(sql.Identifier, (name for (name,) in connection.execute(_KEY, [table]))))
    read = sql.SQL("COPY (SELECT {} FROM {} ORDER BY {}) TO STDOUT").format(names, sql.Identifier(table), key)
    connection.execute("SET LOCAL TIME ZONE 'UTC'")
    with connection.cursor() as cursor, cursor.copy(read) as copying:
        return Copied(table, columns, b"".join(bytes(part) for part in copying).decode())


def _paste(connection: "psycopg.Connection[Any]", copied: Copied) -> None:
    there = [name for (name,) in connection.execute(_COLUMNS, [copied.table])]
    kept = [number for number, name in enumerate(copied.columns) if name in there]
    names = sql.SQL(", ").join(sql.Identifier(copied.columns[number]) for number in kept)
    write = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(copied.table), names)
    with connection.cursor() as cursor, cursor.copy(write) as copying:
        for line in copied.rows.split("\n")[:-1]:
            fields = line.split("\t")
            copying.write("\t".join(fields[number] for number in kept) + "\n")
    for name in there:
        sequence = connection.execute("SELECT pg_get_serial_sequence(%s, %s)", [copied.table, name]).fetchone()
        if sequence and sequence[0]:
            last = sql.SQL("SELECT setval(%s, greatest(max({}), 1)) FROM {}")
            connection.execute(last.format(sql.Identifier(name), sql.Identifier(copied.table)), [sequence[0]])
