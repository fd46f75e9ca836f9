"""Past referrals, with what is on record of each, to ask the rules again; read alone, in any number."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select

from ledger import periods, referrals, reviews, signals
from ledger.database import Transaction
from ledger.referrals import window_of
from ledger.tables import account, card_check, referral
from program.eligibility import Signup
from program.hindsight import Ending, Past, Verdict
from program.payments import Payment
from program.referral import Stage
from program.signals import NO_SIGNS, Signs

PAGE = 500
"""How many referrals are in memory at a time."""

_ENDINGS = {
    Stage.SIGNED_UP: Ending.WAITS,
    Stage.IN_REVIEW: Ending.HELD,
    Stage.CREDITED: Ending.CREDITED,
    Stage.SETTLED: Ending.CREDITED,
    Stage.LAPSED: Ending.LAPSED,
    Stage.REFUSED: Ending.REFUSED,
    Stage.VOIDED: Ending.VOIDED,
}


async def past(transaction: Transaction, since: datetime | None, signups_a_day: int | None) -> AsyncIterator[Past]:
    """Every referral whose signup was decided, the oldest click first, within a snapshot that was begun for it.

    Args:
        transaction: the snapshot.
        since: none that was clicked before, UTC.
        signups_a_day: more signups on one link than that are not told apart; none where no sign is asked for.
    """
    query = (
        select(referral, account.c.created_at)
        .join(account, account.c.account_id == referral.c.referee_id)
        .where(referral.c.stage != Stage.CLICKED)
        .order_by(referral.c.clicked_at, referral.c.referral_id)
    )
    if since is not None:
        query = query.where(referral.c.clicked_at >= since)
    async with transaction.stream(query, execution_options={"yield_per": PAGE}) as rows:
        async for page in rows.partitions():
            for each in await _with_what_is_on_record(transaction, page, signups_a_day):
                yield each


async def _with_what_is_on_record(
    transaction: Transaction, page: Sequence[Row[Any]], signups_a_day: int | None
) -> list[Past]:
    ids = [row.referral_id for row in page]
    payments = await periods.payments_of_each(transaction, sorted({row.referee_id for row in page}))
    approved = await reviews.approvals_of_each(transaction, ids)
    signs: Mapping[str, Signs] = {}
    if signups_a_day is not None:
        signs = await signals.signs_of_each(transaction, ids, at_most=signups_a_day + 1)
    compared: dict[str, dict[str, bool]] = {}
    for check in await transaction.execute(select(card_check).where(card_check.c.referral_id.in_(ids))):
        compared.setdefault(check.referral_id, {})[check.invoice_id] = check.same_card
    return [
        Past(
            referral_id=row.referral_id,
            verdict=_verdict(row),
            final=Stage(row.stage) in (Stage.REFUSED, Stage.VOIDED),
            signup=await _signup(transaction, row),
            window=window_of(row),
            reported_at=row.reserved_at,
            payments=[_as_it_was(payment, row) for payment in payments.get(row.referee_id, ())],
            signs=signs.get(row.referral_id, NO_SIGNS),
            cards_compared=compared.get(row.referral_id, {}),
            approved=approved.get(row.referral_id, ()),
        )
        for row in page
    ]


def _verdict(row: Row[Any]) -> Verdict:
    ending = _ENDINGS[Stage(row.stage)]
    why = [row.refusal] if ending is Ending.REFUSED else row.review_reasons
    if ending is Ending.CREDITED:
        return Verdict(ending, plan=row.plan, minutes=row.bonus_minutes)
    return Verdict(ending, tuple(sorted(why)))


async def _signup(transaction: Transaction, row: Row[Any]) -> Signup:
    if Stage(row.stage) is Stage.LAPSED:
        return await referrals.signup_as_known(transaction, row)
    # Whatever else was looked at when it was attributed was found in order, and no rule that can be tried asks for it.
    return Signup(
        created_at=row.created_at,
        clicked_at=row.clicked_at,
        same_account=False,
        same_email=False,
        same_customer=False,
        erased=False,
        already_referred=False,
        known_email=False,
        known_customer=False,
        first_paid_at=None,
    )


def _as_it_was(payment: Payment, row: Row[Any]) -> Payment:
    """A payment as it was when it brought the bonus: when it was given back or disputed since is not on record."""
    if row.credited_at is not None and payment.invoice == row.qualifying_invoice:
        return replace(payment, refunded=0, disputed=False)
    return payment
