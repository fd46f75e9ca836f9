"""What the backend says of accounts, and a member's link (rules 1 and 13)."""

import structlog
from fastapi import APIRouter, Depends

from ledger import accounts, erasure, reports, signals
from ledger.accounts import Profile
from starter import devices
from starter.checks import not_from_the_future
from starter.models import AccountId, AccountPut, AccountStanding, Cycle, Link, LinkRequest
from starter.problems import documented
from starter.services import Serving, require_api_key

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

router = APIRouter(
    prefix="/v1/accounts/{account_id}",
    tags=["accounts"],
    dependencies=[Depends(require_api_key)],
    responses=documented(401, 422, 503),
)


@router.put("", responses=documented(410))
async def put_account(account_id: AccountId, account: AccountPut, services: Serving) -> AccountStanding:
    """Report an account: at its signup, and whenever something of it changed. May be repeated at will."""
    not_from_the_future(account.created_at, services.now())
    profile = Profile(
        account_id,
        account.email,
        account.created_at,
        account.stripe_customer_id,
        account.first_name,
        account.show_first_name,
        devices.is_disposable(account.email),
    )
    async with services.database.transaction() as transaction:
        news, standing = await reports.account(
            transaction, profile, services.hashes, services.plans, device=devices.device_of(services, account)
        )
    # The customer may be linked only now, after the payment was reported and the signup attributed.
    await services.messenger.tell(news, f"account {account_id}")
    cycle = Cycle(start=standing.cycle.start, end=standing.cycle.end) if standing.cycle else None
    return AccountStanding(account_id=account_id, paid=standing.paid, plan=standing.plan, cycle=cycle)


@router.delete("", status_code=204, responses=documented(404))
async def erase_account(account_id: AccountId, services: Serving) -> None:
    """Erase an account: what identifies the person goes, the ledger's numbers stay. May be repeated at will."""
    async with services.database.transaction() as transaction:
        concerned = await erasure.erase(transaction, account_id, services.hashes)
    await services.messenger.tell_of_erasing(concerned)
    log.info("account erased", account_id=account_id, referral_ids=sorted({side.referral_id for side in concerned}))


@router.post("/referral-link", responses=documented(403, 404))
async def take_link(account_id: AccountId, request: LinkRequest, services: Serving) -> Link:
    """Give a paid subscriber its own link, always the same; whoever takes it accepts the Program Terms."""
    async with services.database.transaction() as transaction:
        link = await accounts.give_link(transaction, account_id, request.terms_version, services.plans)
        device = devices.device_of(services, request)
        if device is not None:
            await signals.saw_device(transaction, account_id, device)
    return Link(code=link.code, url=f"{services.settings.public_url}/r/{link.code}")
