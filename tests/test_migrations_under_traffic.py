"""Migrations while others write and read: nobody is kept waiting for long, and the rehearsal notices who would be."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from alembic import op
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError, OperationalError

from devstack.postgres import EmbeddedPostgres
from ledger.database import Database, schema_serves
from ledger.migrate import migrate, newest_version, pending
from ledger.migrations import steps
from ledger.rehearsal import _Watched, differences, imprint
from tests.stripe_events import unique
from tests.support import DatabaseUrls, copied_database

SOON = timedelta(milliseconds=50)
BEFORE_TOTALS = "0009"


def plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def connect(url: str) -> "psycopg.Connection[tuple[Any, ...]]":
    return psycopg.connect(plain(url), autocommit=True)


@pytest.fixture(scope="module")
def older_template(postgres: EmbeddedPostgres) -> str:
    """The name of a database of an older schema with two members, to copy."""
    name = unique("older")
    urls = copied_database(postgres, "template0", name)
    migrate(urls.owner, BEFORE_TOTALS)
    with connect(urls.app) as connection:
        for member in ("rita", "ruth"):
            connection.execute("INSERT INTO account (account_id, created_at) VALUES (%s, now())", [member])
            connection.execute("INSERT INTO referral_link VALUES (%s, %s, now())", [f"code{member}", member])
    return name


@pytest.fixture
def older(postgres: EmbeddedPostgres, older_template: str) -> DatabaseUrls:
    """A database of an older schema with two members."""
    return copied_database(postgres, older_template, unique("older"))


CLICK = """
    INSERT INTO click_count AS known VALUES (%s, 'qr', current_date, 1)
    ON CONFLICT (code, channel, day) DO UPDATE SET clicks = known.clicks + 1
"""


def test_a_migration_waits_for_its_lock_and_lets_traffic_pass_until_it_has_it(older: DatabaseUrls) -> None:
    tried_again = threading.Semaphore(0)
    reached: list[str] = []

    def bring_up_to_date() -> None:
        reached.append(migrate(older.owner, lock_timeout=SOON, say=lambda _: tried_again.release()))

    migration = threading.Thread(target=bring_up_to_date)
    with connect(older.app) as client, psycopg.connect(plain(older.app)) as slow:
        # Somebody's long transaction has what the migration wants.
        slow.execute(CLICK, ["coderuth"])
        migration.start()
        for _ in range(2):
            assert tried_again.acquire(timeout=30)
            client.execute("SET statement_timeout = '5s'")
            client.execute(CLICK, ["coderita"])
            assert client.execute("SELECT sum(clicks) FROM click_count").fetchone() is not None
        assert pending(older.owner).version == BEFORE_TOTALS
        slow.commit()
        migration.join(30)
        assert reached == [newest_version()]
        client.execute(CLICK, ["coderita"])
        counted = client.execute("SELECT account_id, clicks FROM channel_total ORDER BY 1").fetchall()
    assert counted == [("rita", 3), ("ruth", 1)]


def test_writers_and_readers_go_on_through_every_migration(postgres: EmbeddedPostgres) -> None:
    urls = copied_database(postgres, "template0", unique("older"))
    migrate(urls.owner, "0001")
    with connect(urls.app) as connection:
        connection.execute("INSERT INTO account (account_id, created_at) VALUES ('rita', now())")
        connection.execute("INSERT INTO referral_link VALUES ('coderita', 'rita', now())")
    over, errors, written = threading.Event(), [], []

    def write_and_read(channel: str) -> None:
        try:
            with connect(urls.app) as client:
                client.execute("SET statement_timeout = '15s'")
                number = 0
                while not over.is_set():
                    client.execute(CLICK.replace("qr", channel), ["coderita"])
                    number += 1
                    client.execute("SELECT account_id, code FROM account JOIN referral_link USING (account_id)")
                written.append(number)
        except psycopg.Error as error:
            errors.append(error)

    clients = [threading.Thread(target=write_and_read, args=[channel]) for channel in ("qr", "sms")]
    for client in clients:
        client.start()
    try:
        assert migrate(urls.owner, lock_timeout=SOON) == newest_version()
    finally:
        over.set()
        for client in clients:
            client.join(30)
    assert errors == []
    with connect(urls.app) as connection:
        [counted] = connection.execute("SELECT sum(clicks)::int FROM channel_total").fetchall()
    # Those who clicked between two migrations are counted, too.
    assert counted == (sum(written),)


def test_a_lock_that_is_never_to_be_had_ends_the_migration_and_is_no_longer_waited_for(older: DatabaseUrls) -> None:
    with psycopg.connect(plain(older.app)) as slow:
        slow.execute(CLICK, ["coderuth"])
        with pytest.raises(OperationalError, match="lock timeout"):
            migrate(older.owner, lock_timeout=SOON, patience=timedelta(0))
        assert pending(older.app).version == BEFORE_TOTALS


def test_what_came_before_a_migration_that_fails_is_kept_and_it_goes_on_from_there(older: DatabaseUrls) -> None:
    with connect(older.owner) as connection:
        connection.execute("CREATE TABLE attribution (in_the_way text)")
        with pytest.raises(DBAPIError, match="already exists"):
            migrate(older.owner)
        assert pending(older.owner).version == "0010"
        connection.execute("DROP TABLE attribution")
    assert migrate(older.owner) == newest_version()


def test_whoever_waits_for_another_migration_gives_up_after_all_the_patience(older: DatabaseUrls) -> None:
    said: list[str] = []
    with connect(older.owner) as other:
        other.execute("SELECT pg_advisory_lock(7243905211)")
        with pytest.raises(TimeoutError, match="another migration"):
            migrate(older.owner, patience=timedelta(0), say=said.append)
    assert migrate(older.owner) == newest_version()


@contextmanager
def migration_on(url: str, watched: _Watched | None = None) -> Iterator[None]:
    """A migration under way, for what it is made of."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            if watched:
                watched.begin(connection)
            context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
            with context.begin_transaction(_per_migration=True), Operations.context(context):
                yield
            connection.commit()
    finally:
        engine.dispose()


def test_an_index_is_built_while_somebody_writes_and_again_after_it_was_cut_short(older: DatabaseUrls) -> None:
    with connect(older.owner) as connection:
        connection.execute("INSERT INTO click_count SELECT 'coderita', 'c' || n, now(), 1 FROM generate_series(1, 9) n")
        # Two rows of a kind: it cannot be unique, and an invalid index is left behind.
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("CREATE UNIQUE INDEX CONCURRENTLY by_day ON click_count (day)")
    built = threading.Event()

    def build() -> None:
        with migration_on(older.owner):
            steps.build_index("by_day", "click_count", "(day)")
        built.set()

    builder = threading.Thread(target=build)
    with connect(older.app) as client, psycopg.connect(plain(older.app)) as slow:
        slow.execute(CLICK, ["coderuth"])
        builder.start()
        with connect(older.owner) as looking:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'CONCURRENTLY'"
            while looking.execute(waits).fetchone() == (0,):
                assert builder.is_alive()
        # It waits, and nobody waits for it.
        client.execute("SET statement_timeout = '5s'")
        client.execute(CLICK, ["coderita"])
        assert not built.is_set()
        slow.commit()
        builder.join(30)
        valid = client.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_day'::regclass").fetchone()
    assert built.is_set()
    assert valid == (True,)


def test_what_takes_its_time_leaves_the_limits_as_they_were(older: DatabaseUrls) -> None:
    engine = create_engine(older.owner)
    with engine.connect() as connection:
        connection.exec_driver_sql("SET statement_timeout = '7s'")
        connection.exec_driver_sql("SET lock_timeout = '3s'")
        connection.commit()
        context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
        with context.begin_transaction(_per_migration=True), Operations.context(context):
            steps.build_index("by_day", "click_count", "(day)")
            steps.drop_index("by_day")
        limits = [connection.exec_driver_sql(f"SHOW {name}_timeout").scalar() for name in ("statement", "lock")]
    engine.dispose()
    assert limits == ["7s", "3s"]


def test_rows_are_filled_some_at_a_time_and_all_of_them(older: DatabaseUrls) -> None:
    with connect(older.owner) as connection:
        connection.execute(
            "INSERT INTO account SELECT 'a' || n, null, null, false, now() FROM generate_series(1, 25) n"
        )
        connection.execute("ALTER TABLE account ADD COLUMN shown text")
    with migration_on(older.owner):
        changed = steps.fill("account", "account_id", "shown = upper(account_id)", "shown IS NULL", at_once=10)
    with connect(older.owner) as connection:
        [transactions] = connection.execute("SELECT count(DISTINCT xmin::text) FROM account").fetchall()
        left = connection.execute(
            "SELECT count(*) FROM account WHERE shown IS DISTINCT FROM upper(account_id)"
        ).fetchone()
    assert (changed, transactions, left) == (27, (3,), (0,))


@pytest.mark.parametrize("name", ["account; DROP TABLE entry", "a-b", ""])
def test_what_is_no_name_is_not_put_into_a_statement(name: str) -> None:
    for step in (
        lambda: steps.build_index(name, "account", "(account_id)"),
        lambda: steps.drop_index(name),
        lambda: steps.validate_constraint("account", name),
        lambda: steps.fill(name, "account_id", "x = 1", "x IS NULL"),
    ):
        with pytest.raises(ValueError, match="no name"):
            step()


def _execute(statement: str) -> None:
    op.execute(statement)


async def test_a_migration_that_takes_something_away_says_whom_it_still_serves(older: DatabaseUrls) -> None:
    async def served() -> list[bool]:
        database = Database(older.app, pool_size=1)
        try:
            async with database.transaction() as transaction:
                return [await schema_serves(transaction, wanted) for wanted in ("0007", "0008", BEFORE_TOTALS, "0010")]
        finally:
            await database.close()

    assert await served() == [True, True, True, False]
    with migration_on(older.owner):
        steps.serves("0008")
    assert await served() == [False, True, True, False]
    with pytest.raises(ValueError, match="no version"):
        steps.serves("'; DROP TABLE entry")


BARS = {
    "an index": (("CREATE INDEX by_day ON click_count (day)",), "all of click_count is read under a lock (ShareLock)"),
    "a type": (("ALTER TABLE click_count ALTER COLUMN clicks TYPE bigint",), "click_count is written anew"),
    "a volatile default": (
        ("ALTER TABLE click_count ADD COLUMN at timestamptz NOT NULL DEFAULT clock_timestamp()",),
        "click_count is written anew",
    ),
    "not null": (
        (
            "ALTER TABLE account ALTER COLUMN account_id SET NOT NULL",
            "ALTER TABLE click_count ADD COLUMN x int",
            "ALTER TABLE click_count ADD CHECK (clicks > 0)",
        ),
        "all of click_count is read under a lock (AccessExclusiveLock)",
    ),
    "a reference": (
        ("ALTER TABLE click_count ADD FOREIGN KEY (code) REFERENCES referral_link",),
        "all of click_count is read under a lock (ShareRowExclusiveLock)",
    ),
    "all rows at once": (
        ("UPDATE click_count SET clicks = clicks + 1",),
        "rows of click_count are changed all at once",
    ),
}


@pytest.mark.parametrize("what", BARS)
def test_the_rehearsal_notices_what_would_keep_traffic_out(older: DatabaseUrls, what: str) -> None:
    statements, words = BARS[what]
    with connect(older.app) as connection:
        connection.execute(CLICK, ["coderita"])
    watched, forgiving = _Watched([]), _Watched(["click_count", "referral_link", "account"])
    with migration_on(older.owner, watched):
        for statement in statements:
            _execute(statement)
    assert any(flaw.startswith(words) for flaw in watched.flaws), watched.flaws
    # A table of few rows may be said to be one.
    with connect(older.owner) as connection:
        connection.execute("DROP INDEX IF EXISTS by_day")
        connection.execute("ALTER TABLE click_count DROP COLUMN IF EXISTS at")
    with migration_on(older.owner, forgiving):
        _execute(statements[-1])
    assert forgiving.flaws == []


def test_the_rehearsal_finds_nothing_in_what_lets_traffic_pass(older: DatabaseUrls) -> None:
    with connect(older.app) as connection:
        connection.execute(CLICK, ["coderita"])
    watched = _Watched([])
    with migration_on(older.owner, watched):
        _execute("CREATE TABLE new (account_id text PRIMARY KEY REFERENCES account)")
        _execute("ALTER TABLE click_count ADD COLUMN region text NOT NULL DEFAULT 'eu'")
        _execute("ALTER TABLE click_count ADD CONSTRAINT few CHECK (clicks < 1000000) NOT VALID")
        _execute("CREATE TRIGGER kept BEFORE TRUNCATE ON click_count EXECUTE FUNCTION refuse_change()")
        steps.build_index("by_day", "click_count", "(day)")
        steps.fill("click_count", "code", "region = 'us'", "region = 'eu'")
        steps.validate_constraint("click_count", "few")
        steps.drop_index("by_day")
    assert watched.flaws == []


LOSSES = {
    "DELETE FROM click_count": "click_count has 0 rows, and had 1",
    "UPDATE click_count SET clicks = 7": "values of click_count.clicks are not what they were",
    "ALTER TABLE click_count DROP COLUMN clicks": "the column click_count.clicks is gone",
    "ALTER TABLE click_count RENAME COLUMN clicks TO number": "the column click_count.clicks is gone",
    "DROP TABLE click_count": "the table click_count is gone",
}


@pytest.mark.parametrize("statement", LOSSES)
def test_whatever_a_migration_loses_is_named(older: DatabaseUrls, statement: str) -> None:
    with connect(older.owner) as connection:
        connection.execute(CLICK, ["coderita"])
        before = imprint(older.owner)
        connection.execute(statement)
    after = imprint(older.owner)
    assert differences(before, before) == []
    assert differences(before, after) == [LOSSES[statement]]
    # Where a migration says that it takes something away, it may.
    assert differences(before, after, ["click_count"]) == []


def test_only_the_owner_may_migrate_but_the_application_sees_what_is_pending(older: DatabaseUrls) -> None:
    with pytest.raises(DBAPIError, match="permission denied"):
        migrate(older.app)
    seen = pending(older.app)
    assert (seen.version, seen.wanted) == (BEFORE_TOTALS, newest_version())
    assert seen.migrations[:2] == ("0010", "0011")
    migrate(older.owner)
    assert pending(older.app).migrations == ()
