"""The connection to PostgreSQL, its transactions and its clock."""

import select
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ledger.tables import ledger_now

if TYPE_CHECKING:
    from ledger.happenings import Happening

Transaction = AsyncConnection
"""A transaction under way. Everything done with it is seen by others together, or not at all."""


_WRITTEN = "referrals_written_messages"
_NOTED = "referrals_noted_happenings"
_AROUND = "referrals_around_a_journey"
_OVER = "referrals_transaction_is_over"

# A server that is there ends what takes too long itself. One that vanished without a word is noticed by its silence: to
# what was sent to it, and on a connection that waits for its next use.
_CONNECTION = {
    "connect_timeout": 5,
    "tcp_user_timeout": 15_000,
    "keepalives_idle": 60,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "options": "-c timezone=UTC -c statement_timeout=15s",
}


class TransactionFailedError(Exception):
    """The database refused, or could not be reached. Says which error it was, never what it was about (rule 24)."""


class Database:
    """A pool of connections."""

    def __init__(
        self,
        url: str,
        *,
        offset: Callable[[], timedelta] | None = None,
        pool_size: int = 10,
        announce: Callable[[Sequence[str]], None] | None = None,
        count: Callable[[Sequence["Happening"]], None] | None = None,
    ) -> None:
        """Connect on first use.

        Args:
            url: `postgresql+psycopg://…`, as the application's role.
            offset: by how much the ledger's clock is moved in each transaction, for tests with a time of their own.
            pool_size: how many connections are needed at once as a rule. Twice as many are opened under load, and kept:
                one that is opened for a moment costs both sides more than all that is asked on it.
            announce: is given the ids of the messages in the outbox that a transaction wrote, once it is committed.
            count: is given what a transaction did, once it is committed.
        """
        self._engine: AsyncEngine = create_async_engine(
            url,
            pool_size=2 * pool_size,
            max_overflow=0,
            # Those that were used last: their statements are prepared.
            pool_use_lifo=True,
            pool_timeout=10,
            hide_parameters=True,
            connect_args=_CONNECTION,
        )
        event.listen(self._engine.sync_engine, "checkout", _require_open)
        self._singles = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._snapshots = self._engine.execution_options(isolation_level="REPEATABLE READ")
        self._offset = offset
        self._announce = announce
        self._count = count

    @property
    def engine(self) -> Engine:
        """What the connections come from, for whoever watches them."""
        return self._engine.sync_engine

    def watch_journeys(self, around: Callable[[Sequence[str]], AbstractContextManager[object]]) -> None:
        """Have what is sent together be watched: SQLAlchemy, which others watch, does not see it.

        Args:
            around: is entered with the statements, without their values, before they are sent, and left when all are
                answered.
        """
        for engine in (self._engine, self._singles, self._snapshots):
            engine.sync_engine.update_execution_options(**{_AROUND: around})

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Transaction]:
        """One transaction: committed at the end of the block, undone if the block raises.

        One that was committed with its last journey (`at_once`) is over by then, whatever the block raises afterwards.
        """
        engine = self._snapshots if snapshot else self._engine
        written: list[str] = []
        noted: list[Happening] = []
        async with engine.begin() as transaction:
            await transaction.execution_options(**{_WRITTEN: written, _NOTED: noted, _OVER: []})
            if self._offset is not None:
                await transaction.execute(
                    text("SELECT set_config('referrals.clock_offset', :offset, true)"),
                    {"offset": f"{self._offset().total_seconds()} seconds"},
                )
            yield transaction
        if written and self._announce is not None:
            self._announce(written)
        if noted and self._count is not None:
            self._count(noted)

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[Transaction]:
        """For one statement, which is a transaction by itself: no journey for its beginning, and none for its end."""
        if self._offset is not None:
            # A moved clock is moved for a transaction.
            async with self.transaction() as transaction:
                yield transaction
            return
        async with self._singles.connect() as connection:
            yield connection

    @asynccontextmanager
    async def discreet_transaction(self) -> AsyncIterator[Transaction]:
        """One transaction whose failure may be written into a history: the error tells nothing of the data (rule 24).

        Raises:
            TransactionFailedError: the database refused, or could not be reached.
        """
        try:
            async with self.transaction() as transaction:
                yield transaction
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            state = getattr(cause, "sqlstate", None)
            raise TransactionFailedError(type(cause).__name__ + (f" (SQLSTATE {state})" if state else "")) from None

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Transaction]:
        """A transaction for reading, all of whose queries see one and the same moment."""
        async with self.transaction(snapshot=True) as transaction:
            yield transaction

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


def _require_open(connection: Any, *_: object) -> None:
    """Take no connection from the pool that the server has closed meanwhile.

    A server that ends, or is restarted, says so on every connection, and so there is something to be read on one that
    nobody has asked anything. That is known here, without a question to the server before each transaction.

    Raises:
        InvalidatePoolError: it is closed, and the others of its time with it; the pool opens a new one.
    """
    waiting = select.poll()
    waiting.register(connection.driver_connection.fileno(), select.POLLIN)
    if waiting.poll(0):
        raise InvalidatePoolError


Question = tuple[str, Mapping[str, Any]]
"""A statement in psycopg's own words, `%(name)s` for a value, and its values."""


async def at_once(transaction: Transaction, *questions: Question, commit: bool = False) -> list[list[Any]]:
    """Several statements in one journey to the database and back, carried out in their order, each after the other.

    A statement costs the program about half a millisecond to compose, to send and to wait for, whatever it does; one of
    several that are sent together a tenth of it. So this is for the few transactions that everything waits for: the
    others are better off with statements that are composed of the tables' names.

    Args:
        transaction: within which.
        questions: the statements.
        commit: commit the transaction in the same journey, where all of them succeed. It is over then: nothing can be
            asked in it afterwards.

    Returns:
        The rows of each statement, by the names of their columns; none of one that gives no rows.

    Raises:
        DBAPIError: one of them failed, and the transaction with it.
        RuntimeError: the transaction is over.
    """
    connection = (await transaction.get_raw_connection()).driver_connection
    if connection is None:
        raise RuntimeError("the transaction has no connection")
    options = transaction.sync_connection.get_execution_options() if transaction.sync_connection else {}
    around, over = options.get(_AROUND, _unwatched), options.get(_OVER, [])
    if over:
        raise RuntimeError("the transaction is over: it was committed with what was asked last")
    try:
        with around([statement for statement, _ in questions]):
            answers = await _sent(connection, questions, commit=commit)
    except psycopg.Error as error:
        # As the driver's errors come from everywhere else, and no more of them is told (rule 24).
        raise DBAPIError.instance(
            None, None, error, psycopg.Error, hide_parameters=True, dialect=transaction.dialect
        ) from error
    if commit:
        over.append(True)
    return answers


async def _sent(connection: Any, questions: Sequence[Question], *, commit: bool) -> list[list[Any]]:
    async with connection.pipeline():
        cursors = [connection.cursor(row_factory=namedtuple_row) for _ in questions]
        for cursor, (statement, values) in zip(cursors, questions, strict=True):
            await cursor.execute(statement, values)
        if commit:
            # The server passes over it where a statement before it failed. The driver sees that the transaction is
            # over, and sends no other one.
            await connection.execute("COMMIT", prepare=False)
    # Not by the cursor's `description`: it looks up the type of every column.
    return [await cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else [] for cursor in cursors]


def _unwatched(_: Sequence[str]) -> AbstractContextManager[None]:
    return nullcontext()


def locking(name: str) -> Question:
    """Locks something by its name until the transaction ends: it may have no row yet."""
    return "SELECT pg_advisory_xact_lock(hashtextextended(%(name)s, 0))", {"name": name}


def written(transaction: Transaction, message_id: str) -> None:
    """Note that the transaction has written a message into the outbox, to be announced once it is committed."""
    if transaction.sync_connection is not None:
        transaction.sync_connection.get_execution_options()[_WRITTEN].append(message_id)


def note(transaction: Transaction, happening: "Happening") -> None:
    """Note what the transaction did, to be counted once it is committed."""
    if transaction.sync_connection is not None:
        transaction.sync_connection.get_execution_options()[_NOTED].append(happening)


async def now(transaction: Transaction) -> datetime:
    """The ledger's clock at this moment, UTC. Lock the accounts concerned first, then read it."""
    moment: datetime = (await transaction.execute(ledger_now().select())).scalar_one()
    return moment


async def schema_version(transaction: Transaction) -> str | None:
    """The version of the schema, none where no migration ran yet."""
    if (await transaction.execute(text("SELECT to_regclass('alembic_version')"))).scalar_one() is None:
        return None
    version: str | None = (await transaction.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    return version


async def schema_serves(transaction: Transaction, wanted: str) -> bool:
    """Whether code that wants a version of the schema can work with the one that is there.

    A newer one serves older code as well, so that programs of two releases run side by side while the newer is rolled
    out; until a migration takes something away, and says so (`ledger.migrations.steps.serves`).

    Args:
        transaction: as any role that may read the version.
        wanted: the newest version that the code knows.
    """
    there = await schema_version(transaction)
    if there is None or there < wanted:
        return False
    said = text("SELECT obj_description('alembic_version'::regclass)")
    floor = str((await transaction.execute(said)).scalar() or "").removeprefix("serves ")
    return there == wanted or floor <= wanted
