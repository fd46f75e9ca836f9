"""How the database itself is: its schema, its clock, and what the role may do that uses it."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, text

from ledger import database, reconciliation
from ledger.database import Transaction
from ledger.tables import endpoint_gone, metadata


@dataclass(frozen=True, slots=True)
class Condition:
    """How the database is.

    Args:
        server: PostgreSQL's version.
        schema: the schema's version; none where no migration ran.
        serves: whether code that wants the version that was asked for can work with it.
        role: who is connected.
        owns: whether that role owns the tables, or may do anything: then no trigger or privilege holds it back.
        unreadable: the tables that the role cannot read, or that are missing.
        offset: by how much that clock is moved, which only tests do; empty where it is not.
        events_read_until: until when reconciliation has read Stripe's events, UTC; none where it never has.
        endpoints_gone: the endpoints that have answered that they want nothing any more.
    """

    server: str
    schema: str | None
    serves: bool
    role: str
    owns: bool
    unreadable: tuple[str, ...]
    offset: str
    events_read_until: datetime | None
    endpoints_gone: tuple[str, ...]


async def condition(transaction: Transaction, wanted: str) -> Condition:
    """Look at the database, for code that wants a version of the schema; what there is no schema for is left out."""
    about = (
        await transaction.execute(
            text(
                """SELECT current_setting('server_version') AS server, current_user AS role,
                       coalesce(current_setting('referrals.clock_offset', true), '') AS clock_offset,
                       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
                           OR EXISTS (SELECT FROM pg_tables WHERE tablename = 'entry' AND tableowner = current_user)
                       AS owns"""
            )
        )
    ).one()
    schema = await database.schema_version(transaction)
    readable = text("SELECT coalesce(has_table_privilege(to_regclass(:name), 'SELECT'), false)")
    unreadable = [
        name for name in sorted(metadata.tables) if not (await transaction.execute(readable, {"name": name})).scalar()
    ]
    whole = schema is not None and not unreadable
    gone = await transaction.scalars(select(endpoint_gone.c.endpoint)) if whole else ()
    return Condition(
        server=about.server,
        schema=schema,
        serves=await database.schema_serves(transaction, wanted),
        role=about.role,
        owns=bool(about.owns),
        unreadable=tuple(unreadable),
        offset=about.clock_offset,
        events_read_until=await reconciliation.events_read_until(transaction) if whole else None,
        endpoints_gone=tuple(sorted(gone)),
    )
