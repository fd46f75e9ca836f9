"""The migrations: from nothing to the newest schema, once, for everybody at the same time."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import DBAPIError

from devstack.postgres import EmbeddedPostgres
from ledger.database import Database, schema_version
from ledger.migrate import migrate, newest_version
from ledger.tables import metadata
from tests.support import DatabaseUrls, copied_database

_numbers = itertools.count(1)


def plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


@pytest.fixture
def empty(postgres: EmbeddedPostgres) -> DatabaseUrls:
    """A database of the owner's with nothing in it."""
    return copied_database(postgres, "template0", f"empty_{next(_numbers)}")


async def version_in(url: str) -> str | None:
    database = Database(url, pool_size=1)
    try:
        async with database.transaction() as transaction:
            return await schema_version(transaction)
    finally:
        await database.close()


def fingerprint(url: str) -> list[tuple[object, ...]]:
    """All tables, columns, constraints, indexes, triggers and functions with the ids that they were made with."""
    with psycopg.connect(plain(url)) as connection:
        return connection.execute(
            """SELECT 'relation', oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
               UNION ALL SELECT 'constraint', oid, conname FROM pg_constraint
               UNION ALL SELECT 'trigger', oid, tgname FROM pg_trigger
               UNION ALL SELECT 'function', oid, proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
               ORDER BY 1, 2"""
        ).fetchall()


async def test_an_empty_database_comes_to_the_newest_version_and_says_so(empty: DatabaseUrls) -> None:
    assert await version_in(empty.owner) is None
    assert migrate(empty.owner) == newest_version()
    assert await version_in(empty.owner) == newest_version()
    assert await version_in(empty.app) == newest_version(), "the application cannot see the version"


def test_migrating_again_changes_nothing(empty: DatabaseUrls) -> None:
    migrate(empty.owner)
    before = fingerprint(empty.owner)
    assert len(before) > 50
    assert migrate(empty.owner) == newest_version()
    assert fingerprint(empty.owner) == before


def test_several_migrations_at_once_make_one_schema(empty: DatabaseUrls) -> None:
    together = threading.Barrier(4)

    def run(_: int) -> str:
        together.wait()
        return migrate(empty.owner)

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(run, range(4))) == {newest_version()}
    with psycopg.connect(plain(empty.owner)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(newest_version(),)]


def test_a_migration_that_fails_leaves_nothing_behind(empty: DatabaseUrls) -> None:
    with psycopg.connect(plain(empty.owner)) as connection:
        # The last of the tables is in the way.
        connection.execute("CREATE TABLE entry (unexpected text)")
    with pytest.raises(DBAPIError):
        migrate(empty.owner)
    with psycopg.connect(plain(empty.owner)) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert ("account",) not in tables
        connection.execute("DROP TABLE entry")
    assert migrate(empty.owner) == newest_version()


def test_only_the_owner_can_migrate(empty: DatabaseUrls) -> None:
    with pytest.raises(DBAPIError, match="permission denied"):
        migrate(empty.app)


def test_the_tables_in_code_are_those_of_the_migrated_schema(database_urls: DatabaseUrls) -> None:
    engine = create_engine(database_urls.owner)
    try:
        schema = inspect(engine)
        names = [name for name in schema.get_table_names() if name != "alembic_version"]
        migrated = {
            name: {column["name"]: column["type"].compile(engine.dialect) for column in schema.get_columns(name)}
            for name in names
        }
        keys = {name: sorted(schema.get_pk_constraint(name)["constrained_columns"]) for name in names}
    finally:
        engine.dispose()
    coded = {
        table.name: {column.name: column.type.compile(engine.dialect) for column in table.columns}
        for table in metadata.sorted_tables
    }
    assert migrated == coded
    assert keys == {
        table.name: sorted(column.name for column in table.primary_key.columns) for table in metadata.sorted_tables
    }
    assert {kind for columns in coded.values() for kind in columns.values() if "TIME" in kind} == {
        "TIMESTAMP WITH TIME ZONE"
    }
