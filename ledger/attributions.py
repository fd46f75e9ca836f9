"""Attributes a signup whose report never came, because an operator vouches for it (rules 2, 10, 15 and 18)."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from ledger import accounts, database, referrals
from ledger.accounts import Link, UnknownAccountError
from ledger.database import Transaction
from ledger.referrals import ClickedLink, Reservation, derived_id
from ledger.tables import account, attribution, referral, referral_link
from program.doubts import flaw_of
from program.referral import AttributionWindow, Stage, click_vouched_for

CHANNEL = "operator"
"""By which way such a referral came."""


class NotAttributableError(Exception):
    """The signup cannot be attributed; the message says why, for the operator. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Vouched:
    """What an operator vouches for: that an account came by a link.

    Args:
        account_id: the friend's account, which the backend has reported.
        link: the referrer's.
        by: who says so, by an id of the operator's.
        note: why.
    """

    account_id: str
    link: Link
    by: str
    note: str


async def link_of(transaction: Transaction, *, code: str | None = None, referrer_id: str | None = None) -> Link:
    """The link that is meant, by its code or by whose it is.

    Raises:
        NotAttributableError: there is none, or its account was erased.
    """
    if code is None:
        found = await transaction.execute(select(referral_link.c.code).where(referral_link.c.account_id == referrer_id))
        code = found.scalar_one_or_none()
        if code is None:
            raise NotAttributableError(f"{referrer_id} has no link")
    link = await accounts.link_with_code(transaction, code)
    if link is None:
        raise NotAttributableError(f"there is no link with the code {code}")
    if link.erased:
        raise NotAttributableError("the account of that link was erased (rule 23)")
    return link


async def vouch(transaction: Transaction, vouched: Vouched, length: timedelta) -> Reservation:
    """Reserve the referral of a signup that an operator vouches for, and write down who did and why.

    Whether it counts is decided by its run like any other's; what would be refused is refused here already, so that a
    slip of the hand leaves nothing behind. Where the account's referral stands already, that is the answer, and nothing
    is written; one that was reported and never decided is taken up.

    Args:
        transaction: within which.
        vouched: what is said, by whom.
        length: how long a click counts (rule 15).

    Raises:
        NotAttributableError: it cannot be attributed.
        UnknownAccountError: no such account was ever reported.
    """
    if flaw := flaw_of(vouched.by, vouched.note):
        raise NotAttributableError(flaw)
    link, account_id = vouched.link, vouched.account_id
    await accounts.lock(transaction, [account_id, link.account_id])
    stands = await referrals.standing(transaction, account_id)
    if stands is None:
        stands = await _reserve(transaction, vouched, length)
    elif stands.referrer_id != link.account_id:
        raise NotAttributableError(
            f"the account belongs to referral {stands.referral_id} of another referrer already (rule 10)"
        )
    if stands.stage is Stage.CLICKED:
        await transaction.execute(
            insert(attribution)
            .values(
                referral_id=stands.referral_id,
                decided_by=vouched.by.strip(),
                note=vouched.note.strip(),
                at=await database.now(transaction),
            )
            .on_conflict_do_nothing()
        )
    return stands


async def _reserve(transaction: Transaction, vouched: Vouched, length: timedelta) -> Reservation:
    link, account_id = vouched.link, vouched.account_id
    window = AttributionWindow(await _clicked_at(transaction, link, account_id), length)
    if window.lapsed(await database.now(transaction)):
        raise NotAttributableError(
            f"too late: a link followed when the account was made lapsed on {window.lapses_at:%Y-%m-%d} (rule 15)"
        )
    # An id of its own: the same code, reported too late by the backend, may have been refused under the code's.
    click = ClickedLink(derived_id(link.code, account_id, CHANNEL), link.code, CHANNEL, window)
    reservation = await referrals.reserve(transaction, click, link.account_id, account_id)
    if reservation.stage is not Stage.CLICKED:
        row = await transaction.execute(
            select(referral.c.reason).where(referral.c.referral_id == reservation.referral_id)
        )
        raise NotAttributableError(
            f"referral {reservation.referral_id} was tried before and is {reservation.stage}: {row.scalar_one()}"
        )
    refusal = await referrals.refusal_as_it_stands(transaction, reservation.referral_id)
    if refusal is not None:
        raise NotAttributableError(refusal.words)
    return reservation


async def _clicked_at(transaction: Transaction, link: Link, account_id: str) -> datetime:
    """When the link counts as followed.

    Raises:
        NotAttributableError: there was no such link then.
        UnknownAccountError: no such account was ever reported.
    """
    created_at = (
        await transaction.execute(select(account.c.created_at).where(account.c.account_id == account_id))
    ).scalar_one_or_none()
    if created_at is None:
        raise UnknownAccountError(account_id)
    made_at = (
        await transaction.execute(select(referral_link.c.created_at).where(referral_link.c.code == link.code))
    ).scalar_one()
    if made_at > created_at:
        raise NotAttributableError("the link is younger than the account: nobody can have followed it")
    return click_vouched_for(created_at, await database.now(transaction))
