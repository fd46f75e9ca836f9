"""Who may look at a member's dashboard, and for how long.

A one-time token, which the backend hands to its signed-in member, is exchanged for the secret of a cookie. Of both only
hashes are stored: whoever reads the database can open nothing with it.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, or_, select
from sqlalchemy.dialects.postgresql import insert

from ledger import accounts, database
from ledger.accounts import AccountErasedError, UnknownAccountError
from ledger.dashboard import version_of
from ledger.database import Transaction
from ledger.tables import ledger_now, portal_session
from program.sessions import EXCHANGE_WITHIN, SESSION_LASTS

_RANDOM_BYTES = 32


@dataclass(frozen=True, slots=True)
class OneTimeToken:
    """A token that opens a dashboard once, until a time (UTC)."""

    token: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Session:
    """A session that is open: whose it is, until when (UTC), and the hash that it is known by."""

    account_id: str
    expires_at: datetime
    secret_hash: bytes


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A session that has just been opened: the secret for the cookie, told this once."""

    secret: str
    session: Session


@dataclass(frozen=True, slots=True)
class Glance:
    """How a session stands: whose it is, and the version of what its dashboard shows."""

    account_id: str
    version: str


def hash_of(secret: str) -> bytes:
    """What a token or a secret is known by here. It is random enough to need neither key nor salt."""
    return hashlib.sha256(secret.encode()).digest()


async def issue(transaction: Transaction, account_id: str) -> OneTimeToken:
    """Make a token for an account.

    Raises:
        UnknownAccountError: there is no such account.
        AccountErasedError: it has been erased.
    """
    # Locked, so that no session outlives an erasing that is under way.
    known = await accounts.lock(transaction, [account_id])
    if account_id not in known:
        raise UnknownAccountError(account_id)
    if known[account_id]:
        raise AccountErasedError(account_id)
    token = secrets.token_urlsafe(_RANDOM_BYTES)
    until = await database.now(transaction) + EXCHANGE_WITHIN
    await transaction.execute(
        insert(portal_session).values(token_hash=hash_of(token), account_id=account_id, exchange_until=until)
    )
    return OneTimeToken(token, until)


async def exchange(transaction: Transaction, token: str) -> OpenedSession | None:
    """Open the session of a token; none where it is unknown, used already, or too old. Of many at once, one does."""
    secret = secrets.token_urlsafe(_RANDOM_BYTES)
    opened = await transaction.execute(
        portal_session.update()
        .where(
            portal_session.c.token_hash == hash_of(token),
            portal_session.c.secret_hash.is_(None),
            portal_session.c.exchange_until > ledger_now(),
        )
        .values(secret_hash=hash_of(secret), expires_at=ledger_now() + SESSION_LASTS)
        .returning(portal_session.c.account_id, portal_session.c.expires_at)
    )
    row = opened.first()
    return OpenedSession(secret, Session(row.account_id, row.expires_at, hash_of(secret))) if row else None


async def session_of(transaction: Transaction, secret: str) -> Session | None:
    """The open session that a cookie's secret belongs to; none where it has ended."""
    row = (
        await transaction.execute(
            select(portal_session.c.account_id, portal_session.c.expires_at).where(
                portal_session.c.secret_hash == hash_of(secret), portal_session.c.expires_at > ledger_now()
            )
        )
    ).first()
    return Session(row.account_id, row.expires_at, hash_of(secret)) if row else None


async def issued_for(transaction: Transaction, token: str) -> str | None:
    """The account that a token was made for, used or not; none where it is not known (any more)."""
    found = await transaction.execute(
        select(portal_session.c.account_id).where(portal_session.c.token_hash == hash_of(token))
    )
    account_id: str | None = found.scalar_one_or_none()
    return account_id


async def glances(transaction: Transaction, secret_hashes: Sequence[bytes]) -> dict[bytes, Glance]:
    """How sessions stand, in one query for all of them. One that has ended or was revoked is left out."""
    rows = await transaction.execute(
        select(
            portal_session.c.secret_hash,
            portal_session.c.account_id,
            version_of(portal_session.c.account_id).label("version"),
        ).where(
            portal_session.c.secret_hash.in_(secret_hashes),
            portal_session.c.expires_at > ledger_now(),
        )
    )
    return {row.secret_hash: Glance(row.account_id, row.version) for row in rows}


async def end(transaction: Transaction, secret: str) -> None:
    """End the session of a cookie's secret."""
    await transaction.execute(delete(portal_session).where(portal_session.c.secret_hash == hash_of(secret)))


async def revoke(transaction: Transaction, account_id: str) -> None:
    """End all sessions of an account, and let none of its tokens open another."""
    await transaction.execute(delete(portal_session).where(portal_session.c.account_id == account_id))


async def tidy(transaction: Transaction, limit: int) -> int:
    """Throw away some of what can be opened, or is open, no more; gives how many that were."""
    now = await database.now(transaction)
    over = (
        select(portal_session.c.token_hash)
        .where(
            portal_session.c.exchange_until <= now - SESSION_LASTS,
            or_(portal_session.c.expires_at.is_(None), portal_session.c.expires_at <= now),
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    thrown_away = await transaction.execute(
        delete(portal_session)
        .where(portal_session.c.token_hash.in_(over.scalar_subquery()))
        .returning(portal_session.c.token_hash)
    )
    return len(thrown_away.all())
