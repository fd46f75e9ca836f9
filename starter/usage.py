"""`POST /v1/accounts/{account_id}/usage`: minutes that a call took (rule 21)."""

from fastapi import APIRouter, Depends

from ledger import usage
from ledger.usage import UsageConflictError
from starter.models import AccountId, UsageAnswer, UsageRequest
from starter.problems import ProblemError, documented
from starter.services import Serving, require_api_key

router = APIRouter(prefix="/v1/accounts/{account_id}/usage", tags=["usage"], dependencies=[Depends(require_api_key)])


@router.post("", responses=documented(401, 404, 409, 422, 503))
async def record_usage(account_id: AccountId, request: UsageRequest, services: Serving) -> UsageAnswer:
    """Record minutes that were used: from the bonus first, the soonest to expire first; the rest is the plan's.

    Exactly once for each `usage_id`: the same call again has the same answer.
    """
    try:
        async with services.database.transaction() as transaction:
            used = await usage.spend(transaction, account_id, request.usage_id, request.minutes)
    except UsageConflictError:
        raise ProblemError(
            409, "usage-id-reused", "This usage_id was recorded with another number of minutes."
        ) from None
    services.metrics.minutes_used.labels("bonus").inc(used.from_bonus)
    services.metrics.minutes_used.labels("plan").inc(used.from_plan)
    return UsageAnswer(
        usage_id=used.usage_id, from_bonus=used.from_bonus, from_plan=used.from_plan, available=used.available
    )
