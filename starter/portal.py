"""`/portal`: a member's dashboard, and the way into it and out of it.

Whoever has the cookie of an open session sees that one account. The cookie comes from a one-time token, which is out of
the address bar before anything is shown.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any
from urllib.parse import parse_qs, urlsplit

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from sqlalchemy.exc import SQLAlchemyError

from ledger import accounts, database, portal_sessions, queries
from ledger.accounts import NotAPaidSubscriberError, UnknownAccountError
from ledger.dashboard import dashboard
from ledger.database import Transaction
from ledger.portal_sessions import Session
from program.sessions import SESSION_LASTS
from program.terms import TERMS_VERSION
from starter import cursors, sharing
from starter.limits import Limited
from starter.live import FullError, Listener, News, TooManyStreamsError
from starter.portal_view import portal_view
from starter.problems import ProblemError, database_is_away
from starter.services import Services, Serving
from starter.site import NO_STORE, SECURITY_HEADERS
from starter.visitors import Visitor, visitor

COOKIE = "kally_portal"

PATH = "/portal"

REFERRALS_A_PAGE = 20

_LONGEST_SECRET = 200

_EXPIRED = "portal_expired.html"

router = APIRouter(prefix=PATH, include_in_schema=False)
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Route = Callable[..., Awaitable[Response]]


def _a_page_whatever_happens(route: Route) -> Route:
    @wraps(route)
    async def answer(*args: Any, request: Request, services: Serving, **kwargs: Any) -> Response:
        try:
            return await route(*args, request=request, services=services, **kwargs)
        except UnknownAccountError:
            # Erased since its session was found, and the session with it (rule 23).
            return _expired(request, services)
        except SQLAlchemyError as error:
            if not database_is_away(error):
                raise
            log.warning("unavailable", what="The database", error=type(error).__name__)
            return services.site.page(request, "portal_away.html", 503, headers={"Retry-After": "2"})

    return answer


@router.head("")
@router.get("")
@_a_page_whatever_happens
async def get_portal(
    request: Request, services: Serving, session: str | None = None, cursor: str | None = None
) -> Response:
    """The dashboard; with a one-time token the way into it."""
    if session is not None:
        return await _follow(request, services, session)
    async with services.database.snapshot() as transaction:
        member = await _member(transaction, request)
        if member is None:
            return _expired(request, services)
        return await _dashboard(transaction, request, services, member, cursor)


@router.post("/open")
@_a_page_whatever_happens
async def open_by_hand(request: Request, services: Serving) -> Response:
    """What :func:`get_portal` does, for a person who was taken for a machine."""
    _from_this_site(request, services)
    return await _exchange(request, services, (await _form(request)).get("session", ""))


@router.post("/link")
@_a_page_whatever_happens
async def take_link(request: Request, services: Serving) -> Response:
    """Give the member a link, and record that the terms were accepted (rules 1 and 13)."""
    _from_this_site(request, services)
    form = await _form(request)
    async with services.database.transaction() as transaction:
        member = await _member(transaction, request)
        if member is None:
            return _expired(request, services)
        if form.get("terms_version") == TERMS_VERSION:
            try:
                await accounts.give_link(transaction, member.account_id, TERMS_VERSION, services.plans)
            except NotAPaidSubscriberError:
                # The page says why there is no link, and how to get one.
                log.info("link refused", account_id=member.account_id)
            return _see_portal()
    async with services.database.snapshot() as transaction:
        # Other terms than those in force, or none: the page has those of today.
        return await _dashboard(transaction, request, services, member, status=422, problem="terms-changed")


@router.post("/sign-out")
@_a_page_whatever_happens
async def sign_out(request: Request, services: Serving) -> Response:
    """End the session."""
    _from_this_site(request, services)
    async with services.database.transaction() as transaction:
        await portal_sessions.end(transaction, request.cookies.get(COOKIE, ""))
    answer = _see_portal()
    answer.delete_cookie(COOKIE, PATH, secure=_https(services), httponly=True, samesite="lax")
    return answer


@router.head("/open")
@router.get("/open")
@router.head("/link")
@router.get("/link")
@router.head("/sign-out")
@router.get("/sign-out")
async def come_back_from_form() -> Response:
    """Lead to the dashboard whoever asks anew for the address of what answered a form."""
    return _see_portal()


@router.get("/qr.svg")
@_a_page_whatever_happens
async def get_qr_code(request: Request, services: Serving) -> Response:
    """The member's link, to be scanned."""
    async with services.database.snapshot() as transaction:
        member = await _member(transaction, request)
        link = await accounts.link_of(transaction, member.account_id) if member else None
    if member is None:
        return _expired(request, services)
    if link is None:
        raise ProblemError(404, "no-link", "There is no link to make a picture of.")
    picture = sharing.qr_svg(sharing.address(services.settings.public_url, link.code, "qr"))
    return Response(picture, 200, {**SECURITY_HEADERS, "Cache-Control": NO_STORE}, "image/svg+xml")


@router.get("/events")
@_a_page_whatever_happens
async def follow_events(request: Request, services: Serving, version: str | None = None) -> Response:
    """News of the dashboard, for as long as the session lasts: `changed`, and at last `expired`.

    Args:
        request: the browser's; one that connects again says which version it was told of.
        services: what the route works with.
        version: what the page shows.
    """
    async with services.database.transaction() as transaction:
        member = await _member(transaction, request)
    if member is None:
        return _expired(request, services)
    try:
        listener = services.live.watch(member, request.headers.get("last-event-id") or version)
    except TooManyStreamsError:
        raise ProblemError(429, "too-many-streams", "This dashboard is open too often.") from None
    except FullError:
        raise ProblemError(503, "temporarily-unavailable", "No more dashboards can be told of news now.") from None
    return _EventStream(services, listener)


async def _follow(request: Request, services: Services, token: str) -> Response:
    """Let only a person use a token up (rule 17)."""
    match visitor(request.method, request.headers):
        case Visitor.PREFETCH:
            return Response(status_code=503, headers={**SECURITY_HEADERS, "Cache-Control": NO_STORE})
        case Visitor.MACHINE:
            return services.site.page(request, "portal_open.html", token=token[:_LONGEST_SECRET])
        case Visitor.PERSON:
            return await _exchange(request, services, token)


async def _exchange(request: Request, services: Services, token: str) -> Response:
    await services.limits.look(Limited.PORTAL_TOKENS, request)
    async with services.database.transaction() as transaction:
        opened = await portal_sessions.exchange(transaction, token)
        if opened is None:
            # A second click, or the way back: whoever is in already goes on.
            member = await _member(transaction, request)
            again = member is not None and await portal_sessions.issued_for(transaction, token) == member.account_id
    if opened is None:
        if again:
            return _see_portal()
        await services.limits.take(Limited.PORTAL_TOKENS, request)
        return _expired(request, services)
    log.info("dashboard opened", account_id=opened.session.account_id)
    answer = _see_portal()
    answer.set_cookie(
        COOKIE,
        opened.secret,
        max_age=int(SESSION_LASTS.total_seconds()),
        path=PATH,
        secure=_https(services),
        httponly=True,
        samesite="lax",
    )
    return answer


async def _dashboard(
    transaction: Transaction,
    request: Request,
    services: Services,
    member: Session,
    cursor: str | None = None,
    status: int = 200,
    problem: str | None = None,
) -> Response:
    what = cursors.of_referrals(member.account_id)
    try:
        place = cursors.place(services, what, cursor)
    except ProblemError:
        # Somebody else's, or of long ago.
        return _see_portal()
    seen = await dashboard(transaction, member.account_id, services.plans)
    page = await queries.referrals_of(transaction, member.account_id, REFERRALS_A_PAGE, place)
    view = portal_view(
        seen,
        page.referrals,
        public_url=services.settings.public_url,
        now=await database.now(transaction),
        older=cursors.cursor(services, what, page.next),
        newest=place is None,
        problem=problem,
    )
    return services.site.page(request, "portal.html", status, view=view)


async def _member(transaction: Transaction, request: Request) -> Session | None:
    """Whose session the browser has; none where it has none that is open."""
    secret = request.cookies.get(COOKIE)
    return await portal_sessions.session_of(transaction, secret) if secret else None


def _expired(request: Request, services: Services) -> Response:
    """The page of who is not, or no longer, let in.

    401: with another session the same request would be fine. The scheme says that it is none that a browser asks for.
    """
    return services.site.page(request, _EXPIRED, 401, headers={"WWW-Authenticate": "PortalSession"})


def _see_portal() -> RedirectResponse:
    return RedirectResponse(PATH, 303, {**SECURITY_HEADERS, "Cache-Control": NO_STORE})


def _https(services: Services) -> bool:
    return services.settings.public_url.startswith("https://")


def _from_this_site(request: Request, services: Services) -> None:
    """Let pass only what a page of this site sent.

    Browsers say so by `Sec-Fetch-Site`, older ones by `Origin` alone. From a page that gives no referrer, as all do
    here, the newer ones send an `Origin` of `null`.

    Raises:
        ProblemError: 403.
    """
    url = urlsplit(services.settings.public_url)
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = f"{url.scheme}://{url.netloc}"
    if site == "same-origin" and origin in (None, "null", own):
        return
    if site is None and origin == own:
        return
    raise ProblemError(403, "cross-site-request", "This can only be asked for by the dashboard itself.")


async def _form(request: Request) -> dict[str, str]:
    """The fields of a small form, each once; of one that is none, nothing."""
    body = await request.body()
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=10, errors="strict")
    except ValueError:
        return {}
    return {name: values[0] for name, values in fields.items()}


class _EventStream(StreamingResponse):
    """Server-sent events, until the session ends, the browser leaves or the process stops."""

    def __init__(self, services: Services, listener: Listener) -> None:
        self._services = services
        self._listener = listener
        headers = {**SECURITY_HEADERS, "Cache-Control": NO_STORE, "X-Accel-Buffering": "no"}
        super().__init__(self._events(), 200, headers, "text/event-stream")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._services.metrics.portal_streams.inc()
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._services.metrics.portal_streams.dec()
            self._services.live.leave(self._listener)

    async def _events(self) -> AsyncIterator[str]:
        yield ": here you are told of news\nretry: 3000\n\n"
        while True:
            match await self._listener.listen(self._services.live.heartbeat_seconds):
                case None:
                    yield ": still here\n\n"
                case News.CHANGED:
                    yield f"event: changed\nid: {self._listener.version}\ndata: {{}}\n\n"
                case News.EXPIRED:
                    yield "event: expired\ndata: {}\n\n"
                    return
                case News.CLOSING:
                    return
