"""Erases an account: what identifies the person goes, the ledger's numbers stay (rule 23)."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, select

from ledger import accounts, database, grants, portal_sessions, queries, referrals, signals
from ledger.accounts import UnknownAccountError
from ledger.database import Transaction
from ledger.happenings import What, happened
from ledger.tables import grant, referral
from program.eligibility import Refusal
from program.identity import IdentityHash
from program.referral import Role, Stage


@dataclass(frozen=True, slots=True)
class ErasedSide:
    """A referral whose run has to hear that the account of one side was erased."""

    referral_id: str
    role: Role


@dataclass(frozen=True, slots=True)
class _Concerned:
    """Who has to be locked: the account's customers, and all whose counts change with it."""

    customers: frozenset[str]
    accounts: frozenset[str]


async def erase(transaction: Transaction, account_id: str, hashes: IdentityHash) -> list[ErasedSide]:
    """Erase an account. Erased once, it is read.

    Its unused minutes are voided, and the referral that waits for its first payment is refused. Referrals by its link
    go on, and credit both; nobody can spend what an erased side has. Keyed hashes of its e-mail and customers stay, so
    that the same person is no new signup (rule 10).

    Returns:
        The runs that have to hear of it; they are named again when it is said again.

    Raises:
        UnknownAccountError: there never was such an account.
    """
    if not await _lock(transaction, account_id, hashes):
        await _refuse_open(transaction, account_id)
        await _void_open(transaction, account_id)
        await signals.forget(transaction, account_id)
        await portal_sessions.revoke(transaction, account_id)
        await accounts.hide_customers(transaction, account_id, hashes)
        await accounts.forget(transaction, account_id)
    return await _concerned_runs(transaction, account_id)


async def _lock(transaction: Transaction, account_id: str, hashes: IdentityHash) -> bool:
    """Lock the account and all that is concerned, in the one order; whether it has been erased already.

    Raises:
        UnknownAccountError: there never was such an account.
    """
    while True:
        # Nobody is locked before all are known, and all are known only once they are locked: then once more.
        attempt = await transaction.begin_nested()
        concerned = await _concerned(transaction, account_id)
        for customer_id in sorted(concerned.customers):
            await accounts.lock_customer(transaction, customer_id, hashes)
        known = await accounts.lock(transaction, concerned.accounts)
        if account_id not in known:
            raise UnknownAccountError(account_id)
        if await _concerned(transaction, account_id) == concerned:
            return known[account_id]
        await attempt.rollback()


async def _concerned(transaction: Transaction, account_id: str) -> _Concerned:
    customers = await accounts.customers_of(transaction, account_id)
    # Those of referrals that are only reserved, too: their dashboards tell of the refusal.
    referrers = await transaction.execute(
        select(referral.c.referrer_id).where(
            referral.c.referee_id == account_id,
            referral.c.stage.in_([stage for stage in Stage if stage.awaits_payment]),
        )
    )
    return _Concerned(frozenset(customers), frozenset({account_id, *referrers.scalars()}))


def _open_as_referee(account_id: str) -> tuple[ColumnElement[bool], ...]:
    """The attributed referral of an account that could still bring a bonus."""
    return (referral.c.referee_id == account_id, referral.c.stage.in_([Stage.SIGNED_UP, Stage.IN_REVIEW]))


async def _refuse_open(transaction: Transaction, account_id: str) -> None:
    """End the referral that waits for the account's first payment, and any that is reserved and not attributed yet."""
    now = await database.now(transaction)
    refusal = Refusal.ACCOUNT_ERASED
    reserved = select(referral.c.referral_id).where(
        referral.c.referee_id == account_id, referral.c.stage == Stage.CLICKED
    )
    for referral_id in (await transaction.scalars(reserved)).all():
        await referrals.move(
            transaction, referral_id, Stage.REFUSED, now, refusal.words, refusal=refusal, signed_up_at=now
        )
        happened(transaction, What.SIGNUP_DECIDED, outcome=Stage.REFUSED)
        happened(transaction, What.REFUSED, reason=refusal)
    waiting = await transaction.execute(select(referral).where(*_open_as_referee(account_id)))
    for row in waiting.all():
        await referrals.refuse_attributed(transaction, row, refusal, now)


async def _void_open(transaction: Transaction, account_id: str) -> None:
    """Void what is unused of all grants that have not ended; one that is due, but not swept yet, expires."""
    now = await database.now(transaction)
    lots = await transaction.execute(
        select(grant).where(*queries.open_grants(account_id, now)).order_by(grant.c.grant_id).with_for_update()
    )
    for lot in lots.all():
        await grants.void_open(transaction, lot, now)


async def _concerned_runs(transaction: Transaction, account_id: str) -> list[ErasedSide]:
    refused = await transaction.execute(
        select(referral.c.referral_id).where(
            referral.c.referee_id == account_id,
            referral.c.refusal == Refusal.ACCOUNT_ERASED,
        )
    )
    voided = await transaction.execute(
        select(grant.c.referral_id, grant.c.role)
        .join(referral, referral.c.referral_id == grant.c.referral_id)
        .where(grant.c.account_id == account_id, grant.c.voided_at.is_not(None), referral.c.stage == Stage.CREDITED)
    )
    sides = {ErasedSide(referral_id, Role.REFEREE) for referral_id in refused.scalars()}
    sides |= {ErasedSide(row.referral_id, Role(row.role)) for row in voided}
    return sorted(sides, key=lambda side: (side.referral_id, side.role))
