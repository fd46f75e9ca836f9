"""What the backend reads: referrals, summaries, bonus minutes."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends

from ledger import queries
from program.referral import Role
from starter import cursors
from starter.models import (
    AccountId,
    BonusMinutes,
    Cursor,
    Expiries,
    Grant,
    PageLimit,
    ReferralId,
    ReferralPage,
    ReferralShown,
    Summary,
)
from starter.problems import ProblemError, documented
from starter.services import Serving, require_api_key

router = APIRouter(
    prefix="/v1",
    tags=["referrals"],
    dependencies=[Depends(require_api_key)],
    responses=documented(401, 404, 422, 503),
)


def _shown(referral: queries.Referral) -> ReferralShown:
    return ReferralShown(
        referral_id=referral.referral_id,
        stage=referral.stage,
        reason=referral.reason,
        referrer_account_id=referral.referrer_account_id,
        referee_account_id=referral.referee_account_id,
        plan=referral.plan,
        bonus_minutes=referral.bonus_minutes,
        needs_attention=referral.needs_attention is not None,
        attention=referral.needs_attention,
        review_reasons=referral.review_reasons,
        clicked_at=referral.clicked_at,
        signed_up_at=referral.signed_up_at,
        credited_at=referral.credited_at,
        expires_at=Expiries(
            referrer=referral.expires_at.get(Role.REFERRER), referee=referral.expires_at.get(Role.REFEREE)
        ),
    )


@router.get("/referrals/{referral_id}")
async def get_referral(referral_id: ReferralId, services: Serving) -> ReferralShown:
    """One referral; of a mere click what Temporal holds of it, for as long as it does."""
    async with services.database.snapshot() as transaction:
        referral = await queries.one_referral(transaction, referral_id)
    if referral is not None:
        return _shown(referral)
    click = await services.runs.click(referral_id)
    if click is None:
        raise ProblemError(404, "unknown-referral", "No such referral is known.")
    return ReferralShown(
        referral_id=referral_id,
        stage=click.stage,
        reason=click.reason,
        referrer_account_id=click.referrer,
        clicked_at=click.clicked_at,
    )


@router.get("/accounts/{account_id}/referrals")
async def list_referrals(
    account_id: AccountId, services: Serving, limit: PageLimit = 50, cursor: Cursor = None
) -> ReferralPage:
    """The signups that an account's link brought, the newest first."""
    what = cursors.of_referrals(account_id)
    async with services.database.snapshot() as transaction:
        page = await queries.referrals_of(transaction, account_id, limit, cursors.place(services, what, cursor))
    return ReferralPage(
        referrals=[_shown(referral) for referral in page.referrals],
        next_cursor=cursors.cursor(services, what, page.next),
    )


@router.get("/accounts/{account_id}/referral-summary")
async def get_summary(account_id: AccountId, services: Serving) -> Summary:
    """The numbers of a member's dashboard (rule 12)."""
    async with services.database.snapshot() as transaction:
        summary = await queries.summary(transaction, account_id)
    values: dict[str, Any] = asdict(summary)
    return Summary(**values)


@router.get("/accounts/{account_id}/bonus-minutes")
async def get_bonus_minutes(
    account_id: AccountId, services: Serving, limit: PageLimit = 100, cursor: Cursor = None
) -> BonusMinutes:
    """What an account can use now, and its grants, the newest first."""
    what = f"grants {account_id}"
    async with services.database.snapshot() as transaction:
        page = await queries.lots(transaction, account_id, limit, cursors.place(services, what, cursor))
        summary = await queries.summary(transaction, account_id)
    return BonusMinutes(
        available=summary.bonus_minutes_available,
        grants=[Grant(**asdict(lot)) for lot in page.lots],
        next_cursor=cursors.cursor(services, what, page.next),
    )
