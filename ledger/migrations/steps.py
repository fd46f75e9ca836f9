"""What migrations are made of that run on large tables while traffic does.

A statement that has to look at every row must not hold a lock that keeps others out meanwhile. These do not, so they
may take as long as they need, and each can be repeated after it was cut short. They commit what came before them.
"""

import re

from alembic import op
from sqlalchemy import text

_NAME = re.compile(r"[a-z_][a-z0-9_]*")


def build_index(name: str, table: str, rest: str, *, unique: bool = False) -> None:
    """Build an index while the table is written to.

    Args:
        name: of the index.
        table: that it is on.
        rest: what follows the table's name: `(column) WHERE …`.
        unique: whether it admits no second row of a kind.
    """
    _named(name, table)
    with op.get_context().autocommit_block():
        _take_your_time()
        # One that was cut short is left behind, invalid, and is no use to anybody.
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        op.execute(f"CREATE {'UNIQUE ' if unique else ''}INDEX CONCURRENTLY {name} ON {table} {rest}")
        _hurry()


def drop_index(name: str) -> None:
    """Drop an index without keeping anybody out."""
    _named(name)
    with op.get_context().autocommit_block():
        _take_your_time()
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        _hurry()


def validate_constraint(table: str, name: str) -> None:
    """Look whether all rows keep a constraint that was added `NOT VALID`, in this migration or an earlier one."""
    _named(table, name)
    with op.get_context().autocommit_block():
        _take_your_time()
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
        _hurry()


def fill(table: str, key: str, assignment: str, where: str, *, at_once: int = 5000) -> int:
    """Change rows that are there already, some at a time, each time in a transaction of its own.

    Args:
        table: which.
        key: a column that names a row.
        assignment: `column = …`; afterwards `where` must no longer hold of the row.
        where: which rows are left to be changed.
        at_once: how many are locked together.

    Returns:
        How many rows were changed.
    """
    _named(table, key)
    some = f"SELECT {key} FROM {table} WHERE {where} LIMIT {int(at_once)} FOR UPDATE SKIP LOCKED"  # noqa: S608
    changed = 0
    with op.get_context().autocommit_block():
        while True:
            done = op.get_bind().execute(text(f"UPDATE {table} SET {assignment} WHERE {key} IN ({some})")).rowcount  # noqa: S608
            changed += done
            if not done:
                break
        # Whatever somebody held just then.
        changed += op.get_bind().execute(text(f"UPDATE {table} SET {assignment} WHERE {where}")).rowcount  # noqa: S608
    return changed


def serves(version: str) -> None:
    """Say that code which wants a schema older than `version` cannot work with this one any more.

    Only a migration that takes something away says so; then programs of older releases are not ready.
    """
    if not re.fullmatch(r"\d{4}", version):
        raise ValueError(f"{version} is no version of the schema")
    op.execute(f"COMMENT ON TABLE alembic_version IS 'serves {version}'")


def _named(*names: str) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name} is no name")


def _take_your_time() -> None:
    op.execute("SELECT set_config('referrals.statement_timeout', current_setting('statement_timeout'), false)")
    op.execute("SET statement_timeout = 0")
    # It waits for whoever writes at the moment, and keeps nobody waiting meanwhile.
    op.execute("SELECT set_config('referrals.lock_timeout', current_setting('lock_timeout'), false)")
    op.execute("SET lock_timeout = 0")


def _hurry() -> None:
    for name in ("statement_timeout", "lock_timeout"):
        op.execute(f"SELECT set_config('{name}', current_setting('referrals.{name}'), false)")
