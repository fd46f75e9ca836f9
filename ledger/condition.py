"""How the database itself is: its schema, its clock, and what the role may do that uses it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select, text
from sqlalchemy.dialects.postgresql import aggregate_order_by

from ledger import database, reconciliation, webhook_watch
from ledger.database import Transaction
from ledger.tables import account, delivery, endpoint_gone, identity, ledger_now, metadata, outbox, referral
from ledger.webhook_watch import WebhookWatch
from program.notifications import TOO_OLD

LATELY = timedelta(days=30)
"""For how long it is told that two accounts are one customer."""

MOST_NAMED = 5
"""Of how many customers that is told."""


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
        webhooks: what was seen of Stripe's signatures.
        given_up: for each endpoint, how many messages it has not taken in the end, of those that can be sent again.
        for_people: how many referrals wait for an operator, or for something that one has to mend.
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
    webhooks: WebhookWatch
    given_up: Mapping[str, int]
    for_people: int


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
        webhooks=await webhook_watch.seen(transaction) if whole else WebhookWatch(),
        given_up=await _given_up(transaction) if whole else {},
        for_people=await _for_people(transaction) if whole else 0,
    )


async def _given_up(transaction: Transaction) -> dict[str, int]:
    rows = await transaction.execute(
        select(delivery.c.endpoint, func.count())
        .join(outbox, outbox.c.message_id == delivery.c.message_id)
        .where(delivery.c.state == "given_up", outbox.c.created_at > ledger_now() - TOO_OLD)
        .group_by(delivery.c.endpoint)
        .order_by(delivery.c.endpoint)
    )
    return {row[0]: row[1] for row in rows}


async def _for_people(transaction: Transaction) -> int:
    waits = or_(referral.c.needs_attention.is_not(None), func.cardinality(referral.c.review_reasons) > 0)
    return (await transaction.execute(select(func.count()).select_from(referral).where(waits))).scalar_one()


async def one_customer(transaction: Transaction) -> list[list[str]]:
    """Accounts of which the backend said lately that they are one Stripe customer (rule 18).

    The first of each group had the customer first. An account that was erased is nobody's mistake any more.
    """
    rows = await transaction.execute(
        select(func.array_agg(aggregate_order_by(identity.c.account_id, identity.c.first_seen_at)))
        .join(account, account.c.account_id == identity.c.account_id)
        .where(identity.c.kind == "customer", account.c.erased_at.is_(None))
        .group_by(identity.c.hash)
        .having(func.count() > 1, func.max(identity.c.first_seen_at) > ledger_now() - LATELY)
        .limit(MOST_NAMED)
    )
    return [list(together) for together in rows.scalars()]
