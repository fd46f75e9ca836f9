"""The backend lets its signed-in member into the dashboard, and out again."""

import structlog
from fastapi import APIRouter, Depends

from ledger import portal_sessions
from starter.models import AccountId, PortalSession
from starter.problems import documented
from starter.services import Serving, require_api_key

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

router = APIRouter(
    prefix="/v1/accounts/{account_id}/portal-sessions",
    tags=["portal"],
    dependencies=[Depends(require_api_key)],
    responses=documented(401, 422, 503),
)


@router.post("", status_code=201, responses=documented(404, 410))
async def open_portal(account_id: AccountId, services: Serving) -> PortalSession:
    """Make an address that opens the member's dashboard, once, within five minutes. Send the signed-in member there."""
    async with services.database.transaction() as transaction:
        made = await portal_sessions.issue(transaction, account_id)
    url = f"{services.settings.public_url}/portal?session={made.token}"
    return PortalSession(url=url, expires_at=made.expires_at)


@router.delete("", status_code=204)
async def revoke_portal_sessions(account_id: AccountId, services: Serving) -> None:
    """End all sessions of an account, and let none of its addresses open another. May be repeated at will."""
    async with services.database.transaction() as transaction:
        await portal_sessions.revoke(transaction, account_id)
    log.info("portal sessions revoked", account_id=account_id)
