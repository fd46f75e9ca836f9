"""`GET /r/{code}`: a person's click starts a referral; machines and prefetches start nothing (rules 15 to 17)."""

from datetime import date, datetime
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import structlog
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy.exc import DBAPIError

from ledger import accounts, referrals
from ledger.accounts import Link
from ledger.referrals import ClickedLink
from program.referral import REPEATED_CLICK, AttributionWindow
from starter.limits import Limited
from starter.models import channel_of
from starter.names import fit_to_show
from starter.problems import documented
from starter.services import Services, Serving
from starter.tokens import InvalidTokenError
from starter.visitors import Visitor, visitor
from workflows.client import ReferralOverError, UnreachableError
from workflows.messages import ReferralStart, workflow_id

COOKIE = "kally_ref"
"""The last link followed, for the signup to tell (rule 16)."""

VISIT_COOKIE = "kally_visit"
"""The click on one link, sent back to that link alone, so that a second one is known for what it is (rule 16)."""

_NO_STORE = {"Cache-Control": "no-store"}

router = APIRouter(tags=["links"])
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "A machine: the preview."},
    302: {"description": "A person: on to the signup, with a token and a cookie."},
    404: {"description": "No such link.", "content": {"text/html": {"schema": {"type": "string"}}}},
    429: {
        "description": "Too many clicks, or too many unknown codes, from one address.",
        "content": {"text/html": {"schema": {"type": "string"}}},
    },
    503: {**documented(503)[503], "description": "A prefetch, without a body: come again when the visit is meant."},
}


@router.head("/r/{code}", response_class=HTMLResponse, responses=_ANSWERS)
@router.get("/r/{code}", response_class=HTMLResponse, responses=_ANSWERS)
async def follow_link(
    code: str,
    request: Request,
    services: Serving,
    c: Annotated[str | None, Query(description="By which way the link was shared: whatsapp, email, sms, qr …")] = None,
) -> Response:
    """Follow a referrer's link."""
    who = visitor(request.method, request.headers)
    if who is Visitor.PREFETCH:
        services.metrics.clicks.labels("prefetch").inc()
        return Response(status_code=503, headers=_NO_STORE)
    if "\0" in code:  # the one character that PostgreSQL cannot even look for
        return await _unknown(request, services)
    now = services.now().replace(microsecond=0)
    channel = channel_of(c)
    repeated = _earlier_click(request, services, accounts.plain_code(code), now) if who is Visitor.PERSON else None
    counts = who is Visitor.PERSON and repeated is None
    link = await (_link_counted(services, code, channel, now.date()) if counts else _link(services, code))
    if link is None or link.erased:
        return await _unknown(request, services)
    window = AttributionWindow(now, services.settings.attribution_window)
    fresh = ClickedLink(referrals.new_id(), link.code, channel, window)
    if who is Visitor.MACHINE:
        services.metrics.clicks.labels("machine").inc()
        return services.site.page(
            request,
            "invitation.html",
            code=link.code,
            giver=fit_to_show(link.first_name),
            way_on=_signup_url(services, fresh),
        )
    if repeated is not None:
        if await _start(services, repeated, link.account_id):
            services.metrics.clicks.labels("repeat").inc()
            return _redirect(services, repeated)
        # What it would repeat is over: a new one after all.
        await _link_counted(services, code, channel, now.date())
    await _start(services, fresh, link.account_id)
    services.metrics.clicks.labels("person").inc()
    return _redirect(services, fresh)


@router.head("/r", include_in_schema=False)
@router.get("/r", include_in_schema=False)
@router.head("/r/{rest:path}", include_in_schema=False)
@router.get("/r/{rest:path}", include_in_schema=False)
async def follow_half_a_link(request: Request, services: Serving) -> Response:
    """Follow what is left of a link, or has more behind it: somebody copied it with care, but not whole."""
    return await _unknown(request, services)


async def _link(services: Services, code: str) -> Link | None:
    async with services.database.statement() as statement:
        return await accounts.link_with_code(statement, code)


async def _link_counted(services: Services, code: str, channel: str, day: date) -> Link | None:
    """The link, with a click on it counted; where that cannot be, the visit is no worse for a number."""
    try:
        async with services.database.statement() as statement:
            return await accounts.link_followed(statement, code, channel, day)
    except DBAPIError as error:
        link = await _link(services, code)
        if link is not None:
            log.warning("click not counted", error=type(error.orig).__name__)
        return link


async def _unknown(request: Request, services: Services) -> Response:
    await services.limits.take(Limited.UNKNOWN_CODES, request)
    services.metrics.clicks.labels("unknown").inc()
    return services.site.page(request, "unknown_link.html", 404)


def _earlier_click(request: Request, services: Services, code: str, now: datetime) -> ClickedLink | None:
    """The click of the same visitor on the link of that code that one now only repeats, if it does (rule 16)."""
    # The cookie of the link itself knows it also where another link was followed meanwhile.
    for cookie in (request.cookies.get(VISIT_COOKIE), request.cookies.get(COOKIE)):
        try:
            earlier = services.tokens.read(cookie or "")
        except InvalidTokenError:
            continue
        if earlier.code == code and earlier.window.same_visit(now):
            return earlier
    return None


async def _start(services: Services, click: ClickedLink, referrer: str) -> bool:
    """Start the referral's run; false where it is over already. A Temporal that is away is made up for at signup."""
    start = ReferralStart(click.referral_id, referrer, click.window.clicked_at, click.window.lapses_at)
    ids = {"referral_id": click.referral_id, "workflow_id": workflow_id(click.referral_id)}
    try:
        await services.runs.clicked(start, services.now(), click.channel)
    except ReferralOverError:
        return False
    except UnreachableError:
        services.metrics.clicks_not_started.inc()
        log.warning("click not started", **ids)
    else:
        log.info("click", **ids)
    return True


def _signup_url(services: Services, click: ClickedLink) -> str:
    parts = urlsplit(services.settings.signup_url)
    reference = urlencode({"ref": services.tokens.sign(click)})
    return urlunsplit(parts._replace(query=f"{parts.query}&{reference}" if parts.query else reference))


def _redirect(services: Services, click: ClickedLink) -> Response:
    settings = services.settings
    token = services.tokens.sign(click)
    https = settings.public_url.startswith("https://")
    response = RedirectResponse(_signup_url(services, click), 302, _NO_STORE)
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(settings.attribution_window.total_seconds()),
        domain=settings.cookie_domain,
        secure=https,
        httponly=True,
        samesite="lax",
    )
    response.set_cookie(
        VISIT_COOKIE,
        token,
        max_age=int(REPEATED_CLICK.total_seconds()),
        path=f"/r/{click.code}",
        secure=https,
        httponly=True,
        samesite="lax",
    )
    return response
