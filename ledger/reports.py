"""What the backend reports of accounts and signups, each in as few journeys as its decisions allow."""

from collections.abc import Sequence
from typing import Any

from ledger import accounts, database, facts, referrals, signals
from ledger.accounts import Link, Profile, Standing
from ledger.database import Question, Transaction
from ledger.facts import News
from ledger.referrals import ClickedLink, Reservation
from program.identity import IdentityHash
from program.plans import Plans


async def account(
    transaction: Transaction, profile: Profile, hashes: IdentityHash, plans: Plans, *, device: bytes | None = None
) -> tuple[News, Standing]:
    """Store what the backend says of an account, in one journey unless that moves a bonus's expiry (rule 9).

    Args:
        transaction: within which.
        profile: what is said.
        hashes: for what outlives the account.
        plans: on sale.
        device: the keyed hash of what the account was seen with, where that is kept (rule 19).

    Returns:
        Which runs have to hear of it, for a customer may be linked only now (rules 9 and 14), and how it stands.

    Raises:
        AccountErasedError: the account has been erased.
        ValueError: the e-mail is none.
    """
    put, _, news, standing = await _in_one_journey(
        transaction,
        accounts.putting(profile, hashes),
        signals.seeing_device(profile.account_id, device) if device is not None else (),
        facts.asking_news([profile.account_id]),
        accounts.asking_how_it_stands(profile.account_id),
    )
    accounts.refuse_erased(profile.account_id, put)
    return (
        await facts.news_found(transaction, news, plans),
        await accounts.standing_found(transaction, standing, profile.account_id, plans),
    )


async def before_signup(
    transaction: Transaction, click: ClickedLink, account_id: str
) -> tuple[Link | None, Reservation | None]:
    """The link that a signup goes back to, and the referral that it has already, if it was reported before."""
    link, reserved = await database.at_once(
        transaction, accounts.asking_link_with(click.code), referrals.asking_reserved(click, account_id)
    )
    return accounts.link_found(link), referrals.reservation_of(reserved[0]) if reserved else None


async def signup(
    transaction: Transaction,
    profile: Profile,
    click: ClickedLink,
    referrer_id: str,
    hashes: IdentityHash,
    *,
    device: bytes | None = None,
) -> Reservation:
    """Store the account that signed up, and reserve the click's referral for it (rule 16), all in one journey.

    Args:
        transaction: within which.
        profile: what is said of the account.
        click: by which it came.
        referrer_id: whose link it was.
        hashes: for what outlives the account.
        device: the keyed hash of what the account was seen with, where that is kept (rule 19).

    Raises:
        AccountErasedError: the account has been erased.
        ValueError: the e-mail is none.
    """
    account_id = profile.account_id
    put, _, (*_, rows) = await _in_one_journey(
        transaction,
        accounts.putting(profile, hashes),
        signals.seeing_device(account_id, device, at_signup=True) if device is not None else (),
        referrals.reserving(click, referrer_id, account_id),
    )
    accounts.refuse_erased(account_id, put)
    return referrals.reservation_of(rows[0])


async def _in_one_journey(transaction: Transaction, *parts: Sequence[Question]) -> list[list[list[Any]]]:
    """What each question of each part gives; all are sent together, in their order."""
    answers = iter(await database.at_once(transaction, *(question for part in parts for question in part)))
    return [[next(answers) for _ in part] for part in parts]
