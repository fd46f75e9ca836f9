"""`POST /v1/signups`: a friend has signed up. Durable once it is answered (rules 2, 15 and 16)."""

import structlog
from fastapi import APIRouter, Depends

from activities.telling import start_of
from ledger import reports
from ledger.accounts import Link, Profile, plain_code
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
    click = _click(services, signup)
    async with services.database.transaction() as transaction:
        found, reservation = await reports.before_signup(transaction, click, signup.account_id)
        link = _the_link(found, services, signup)
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
            reservation = await reports.signup(
                transaction,
                profile,
                click,
                link.account_id,
                services.hashes,
                device=devices.device_of(services, signup),
            )
    await _tell_run(services, reservation, signup.account_id)
    return SignupAccepted(referral_id=reservation.referral_id)


def _click(services: Services, signup: SignupRequest) -> ClickedLink:
    """The click that a signup goes back to, or would, if there is a link with that code."""
    if signup.referral_token is not None:
        try:
            return services.tokens.read(signup.referral_token)
        except InvalidTokenError:
            services.metrics.signups.labels("invalid").inc()
            raise ProblemError(422, "invalid-referral-token", "The referral token was not signed here.") from None
    code = plain_code(signup.referral_code or "")
    given_at = code_given_at(signup.created_at, services.now())
    window = AttributionWindow(given_at, services.settings.attribution_window)
    return ClickedLink(derived_id(code, signup.account_id), code, "code", window)


def _the_link(found: Link | None, services: Services, signup: SignupRequest) -> Link:
    """The link that a signup goes back to: whoever followed it before its account was erased counts (rule 23)."""
    if signup.referral_token is not None:
        if found is None:
            services.metrics.signups.labels("invalid").inc()
            raise ProblemError(422, "invalid-referral-token", "The referral token names a link that does not exist.")
    elif found is None or found.erased:
        services.metrics.signups.labels("invalid").inc()
        raise ProblemError(422, "invalid-referral-code", "There is no link with that code.")
    return found


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
