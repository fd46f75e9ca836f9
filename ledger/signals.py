"""What tells that a referral may not be what it seems, looked at right before its credit (rule 19)."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert

from ledger import database
from ledger.database import Question, Transaction
from ledger.tables import account, card_check, customer, device, ledger_now, referral
from program.doubts import Finding
from program.identity import is_pseudonym
from program.referral import Stage
from program.signals import A_DAY, DEVICES_KEPT, Handling, SignalPolicy, Signs, findings_of


class CardCheckNeededError(Exception):
    """Whether an invoice was paid with a card of the referrer's is not known yet, and nobody is credited before it is.

    Args:
        referral_id: whose credit waits.
        invoice: the invoice that would bring the bonus.
        customers: the referrer's Stripe customers.
    """

    def __init__(self, referral_id: str, invoice: str, customers: Sequence[str]) -> None:
        super().__init__(f"the card that paid {invoice} is not yet compared with the referrer's")
        self.referral_id = referral_id
        self.invoice = invoice
        self.customers = tuple(customers)


async def findings(transaction: Transaction, row: Row[Any], invoice: str, policy: SignalPolicy) -> tuple[Finding, ...]:
    """What the signs that are turned on find about a referral whose credit is due; its accounts are locked.

    Args:
        transaction: the one that credits.
        row: the referral.
        invoice: the invoice that would bring the bonus.
        policy: which signs are turned on.

    Raises:
        CardCheckNeededError: cards are compared, and this invoice's has not been yet.
    """
    signs = Signs(
        same_card=policy.same_card and await _same_card(transaction, row, invoice),
        same_device=policy.same_device is not Handling.OFF and await _same_device(transaction, row),
        disposable_email=policy.disposable_email is not Handling.OFF and await _disposable_email(transaction, row),
        signups_that_day=(
            0
            if policy.many_signups is Handling.OFF
            else await _signups_that_day(transaction, row, at_most=policy.signups_a_day + 1)
        ),
    )
    return findings_of(signs, policy)


async def _same_card(transaction: Transaction, row: Row[Any], invoice: str) -> bool:
    checked = await transaction.execute(
        select(card_check.c.same_card).where(
            card_check.c.referral_id == row.referral_id, card_check.c.invoice_id == invoice
        )
    )
    same_card: bool | None = checked.scalar_one_or_none()
    if same_card is None:
        customers = await transaction.execute(
            select(customer.c.customer_id)
            .where(customer.c.account_id == row.referrer_id)
            .order_by(customer.c.customer_id)
        )
        # Stripe cannot be asked for the customers of an erased account (rule 23).
        asked = [name for name in customers.scalars() if not is_pseudonym(name)]
        raise CardCheckNeededError(row.referral_id, invoice, asked)
    return same_card


async def _same_device(transaction: Transaction, row: Row[Any]) -> bool:
    friends, referrers = device.alias("friends"), device.alias("referrers")
    found = await transaction.execute(
        select(
            exists().where(
                friends.c.account_id == row.referee_id,
                friends.c.at_signup,
                referrers.c.account_id == row.referrer_id,
                referrers.c.hash == friends.c.hash,
            )
        )
    )
    return bool(found.scalar_one())


async def _disposable_email(transaction: Transaction, row: Row[Any]) -> bool:
    found = await transaction.execute(select(account.c.disposable_email).where(account.c.account_id == row.referee_id))
    return bool(found.scalar_one())


async def _signups_that_day(transaction: Transaction, row: Row[Any], *, at_most: int) -> int:
    """How many signups a link had in the day up to this one; more than `at_most` are not told apart."""
    counted = (
        select(referral.c.referral_id)
        .where(
            referral.c.code == row.code,
            referral.c.signed_up_at > row.signed_up_at - A_DAY,
            referral.c.signed_up_at <= row.signed_up_at,
            referral.c.stage.in_([stage for stage in Stage if stage.attributed]),
        )
        .limit(at_most)
        .subquery()
    )
    return int((await transaction.execute(select(func.count()).select_from(counted))).scalar_one())


async def signs_of_each(transaction: Transaction, referral_ids: Sequence[str], *, at_most: int) -> dict[str, Signs]:
    """What is known by now of the signs of some referrals; of cards nothing, for that is about an invoice.

    Args:
        transaction: within which.
        referral_ids: of which.
        at_most: more signups than that on a link in a day are not told apart.
    """
    friends, referrers, others = device.alias("friends"), device.alias("referrers"), referral.alias("others")
    same_device = exists().where(
        friends.c.account_id == referral.c.referee_id,
        friends.c.at_signup,
        referrers.c.account_id == referral.c.referrer_id,
        referrers.c.hash == friends.c.hash,
    )
    signups = (
        select(others.c.referral_id)
        .where(
            others.c.code == referral.c.code,
            others.c.signed_up_at > referral.c.signed_up_at - A_DAY,
            others.c.signed_up_at <= referral.c.signed_up_at,
            others.c.stage.in_([stage for stage in Stage if stage.attributed]),
        )
        .limit(at_most)
        .correlate(referral)
        .lateral()
    )
    rows = await transaction.execute(
        select(
            referral.c.referral_id,
            same_device.label("same_device"),
            account.c.disposable_email,
            select(func.count()).select_from(signups).scalar_subquery().label("signups"),
        )
        .join(account, account.c.account_id == referral.c.referee_id)
        .where(referral.c.referral_id.in_(referral_ids))
    )
    return {
        row.referral_id: Signs(
            same_card=False,
            same_device=row.same_device,
            disposable_email=bool(row.disposable_email),
            signups_that_day=row.signups,
        )
        for row in rows
    }


async def record_card_check(transaction: Transaction, referral_id: str, invoice: str, *, same_card: bool) -> None:
    """Store what Stripe said of the card that paid an invoice; the first answer stays."""
    await transaction.execute(
        insert(card_check)
        .values(referral_id=referral_id, invoice_id=invoice, same_card=same_card, checked_at=ledger_now())
        .on_conflict_do_nothing()
    )


async def saw_device(transaction: Transaction, account_id: str, digest: bytes, *, at_signup: bool = False) -> None:
    """Remember that an account, which is locked, was seen with a network and browser; only the newest are kept.

    Args:
        transaction: within which.
        account_id: the account.
        digest: the keyed hash of both.
        at_signup: it was the signup that a referral came from: kept apart, for the friend is compared by that alone.
    """
    await database.at_once(transaction, *seeing_device(account_id, digest, at_signup=at_signup))


def seeing_device(account_id: str, digest: bytes, *, at_signup: bool = False) -> tuple[Question, Question]:
    """Remembers it, as :func:`saw_device` does."""
    values = {"account": account_id, "hash": digest, "at_signup": at_signup, "kept": DEVICES_KEPT}
    return (_SAW_DEVICE, values), (_FORGET_OLDER, values)


_SAW_DEVICE = """
INSERT INTO device (account_id, hash, at_signup, seen_at)
VALUES (%(account)s, %(hash)s, %(at_signup)s, ledger_now())
ON CONFLICT (account_id, hash, at_signup) DO UPDATE SET seen_at = excluded.seen_at
"""
_FORGET_OLDER = """
DELETE FROM device WHERE account_id = %(account)s AND at_signup = %(at_signup)s AND hash IN (
    SELECT hash FROM device WHERE account_id = %(account)s AND at_signup = %(at_signup)s
    ORDER BY seen_at DESC, hash OFFSET %(kept)s)
"""


async def forget(transaction: Transaction, account_id: str) -> None:
    """Forget every sign of an account, which is locked and is being erased (rule 23)."""
    await transaction.execute(delete(device).where(device.c.account_id == account_id))
    await transaction.execute(account.update().where(account.c.account_id == account_id).values(disposable_email=False))
