"""`POST /v1/signups`: a friend has signed up. Durable once it is answered (rules 2, 15 and 16)."""

import structlog
from fastapi import APIRouter, Depends

from activities.telling import start_of
from ledger import accounts, referrals
from ledger.accounts import Profile
from ledger.database import Transaction
from ledger.referrals import ClickedLink, Reservation, derived_id
from program.referral import AttributionWindow, Stage, code_given_at
from starter import devices
from starter.checks import not_from_the_future
from starter.models import SignupAccepted, SignupRequest
from starter.problems import ProblemError, documented
from starter.services import Services, Serving, require_api_key
from starter.tokens import InvalidTokenError
from workflows.messages import workflow_id

router = APIRouter(
    prefix="/v1/signups",
    tags=["signups"],
    dependencies=[Depends(require_api_key)],
    responses=documented(401, 422, 503),
)
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_LAPSED = ProblemError(409, "referral-lapsed", "The link was followed too long before; the referral has lapsed.")


@router.post("", status_code=202, responses=documented(409, 410))
async def report_signup(signup: SignupRequest, services: Serving) -> SignupAccepted:
    """Report a signup that came with a referral token or code. Whether it counts is decided by the referral's run."""
    now = services.now()
    not_from_the_future(signup.created_at, now)
    async with services.database.transaction() as transaction:
        click, referrer_id = await _click(transaction, services, signup)
        reservation = await referrals.reserved(transaction, click, signup.account_id)
        if reservation is None:
            if not click.window.admits(signup.created_at) or click.window.lapsed(now):
                services.metrics.signups.labels("lapsed").inc()
                raise _LAPSED
            profile = Profile(
                signup.account_id,
                signup.email,
                signup.created_at,
                disposable_email=devices.is_disposable(signup.email),
            )
            await accounts.put(transaction, profile, services.hashes)
            await devices.remember(transaction, services, signup.account_id, signup, at_signup=True)
            reservation = await referrals.reserve(transaction, click, referrer_id, signup.account_id)
    await _tell_run(services, reservation, signup.account_id)
    return SignupAccepted(referral_id=reservation.referral_id)


async def _click(transaction: Transaction, services: Services, signup: SignupRequest) -> tuple[ClickedLink, str]:
    """The click that a signup goes back to, and whose link it was."""
    if signup.referral_token is not None:
        try:
            click = services.tokens.read(signup.referral_token)
        except InvalidTokenError:
            services.metrics.signups.labels("invalid").inc()
            raise ProblemError(422, "invalid-referral-token", "The referral token was not signed here.") from None
        link = await accounts.link_with_code(transaction, click.code)
        if link is None:
            services.metrics.signups.labels("invalid").inc()
            raise ProblemError(422, "invalid-referral-token", "The referral token names a link that does not exist.")
        return click, link.account_id
    link = await accounts.link_with_code(transaction, signup.referral_code or "")
    if link is None or link.erased:
        services.metrics.signups.labels("invalid").inc()
        raise ProblemError(422, "invalid-referral-code", "There is no link with that code.")
    given_at = code_given_at(signup.created_at, services.now())
    window = AttributionWindow(given_at, services.settings.attribution_window)
    return ClickedLink(derived_id(link.code, signup.account_id), link.code, "code", window), link.account_id


async def _tell_run(services: Services, reservation: Reservation, account_id: str) -> None:
    ids = {"referral_id": reservation.referral_id, "workflow_id": workflow_id(reservation.referral_id)}
    if reservation.stage is Stage.LAPSED:
        services.metrics.signups.labels("lapsed").inc()
        raise _LAPSED
    if reservation.stage is not Stage.CLICKED:
        services.metrics.signups.labels("known").inc()
        return
    if await services.messenger.report_signup(start_of(reservation), account_id) is Stage.LAPSED:
        services.metrics.signups.labels("lapsed").inc()
        raise _LAPSED
    services.metrics.signups.labels("accepted").inc()
    log.info("signup reported", **ids)
