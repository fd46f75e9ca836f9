"""What the backend says of accounts, and a member's link (rules 1 and 13)."""

from fastapi import APIRouter, Depends

from ledger import accounts, facts
from ledger.accounts import Profile
from starter.checks import not_from_the_future
from starter.models import AccountId, AccountPut, AccountStanding, Cycle, Link, LinkRequest
from starter.problems import documented
from starter.services import Serving, require_api_key

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
    )
    async with services.database.transaction() as transaction:
        await accounts.put(transaction, profile, services.hashes)
        news = await facts.news_of_account(transaction, account_id, services.plans)
        standing = await accounts.standing(transaction, account_id, services.plans)
    # The customer may be linked only now, after the payment was reported and the signup attributed.
    await services.tell(news, f"account {account_id}")
    cycle = Cycle(start=standing.cycle.start, end=standing.cycle.end) if standing.cycle else None
    return AccountStanding(account_id=account_id, paid=standing.paid, plan=standing.plan, cycle=cycle)


@router.post("/referral-link", responses=documented(403, 404))
async def take_link(account_id: AccountId, request: LinkRequest, services: Serving) -> Link:
    """Give a paid subscriber its own link, always the same; whoever takes it accepts the Program Terms."""
    async with services.database.transaction() as transaction:
        link = await accounts.give_link(transaction, account_id, request.terms_version, services.plans)
    return Link(code=link.code, url=f"{services.settings.public_url}/r/{link.code}")
