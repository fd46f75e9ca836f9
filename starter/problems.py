"""Errors as problem documents (RFC 9457), each with a code that never changes."""

import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from billing.api import StripeRefusedError, StripeUnreachableError
from billing.thin import ApiKeyMissingError
from ledger.accounts import AccountErasedError, NotAPaidSubscriberError, UnknownAccountError
from starter.limits import TooManyRequestsError
from starter.site import Site
from workflows.client import UnreachableError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PROBLEM = "application/problem+json"


class Problem(BaseModel):
    """What went wrong. `code` is for programs, `detail` for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[dict[str, Any]] | None = None


class ProblemError(Exception):
    """An error that is answered as a problem document."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        """Name the HTTP status, the code for programs and the words for people."""
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})


def problem(
    status: int,
    code: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: list[dict[str, Any]] | None = None,
) -> Response:
    """A problem document as a response."""
    document = Problem(
        type=f"/problems/{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        errors=errors,
    )
    # A 404 may be kept by whoever stands between, unless it says otherwise: what is missing now may be there next.
    sent = {"Cache-Control": "no-store", **(headers or {})}
    return JSONResponse(document.model_dump(exclude_none=True), status, sent, PROBLEM)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These problems, for the OpenAPI document of a route."""
    # Who is asked for a key may have come with too many wrong ones.
    statuses += (429,) if 401 in statuses else ()
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {PROBLEM: {"schema": _SCHEMA}}}
        for status in statuses
    }


_CODES = {413: "Content Too Large"}
"""What Python called otherwise before 3.13."""

_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")

_SCHEMA = {"$ref": "#/components/schemas/Problem"}
_COME_AGAIN = {"Retry-After": "2"}


def _unavailable(what: str, error: Exception) -> Response:
    log.warning("unavailable", what=what, error=type(error).__name__)
    return problem(503, "temporarily-unavailable", f"{what} cannot be reached now; try again.", _COME_AGAIN)


def unexpected(error: Exception) -> Response:
    """The answer to an error that nobody foresaw. Where it happened is logged, but not its words.

    PostgreSQL quotes the row that it refuses, and SQLAlchemy the values: they may be personal (rule 24).
    """
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    log.error(
        "unexpected error",
        error=type(cause).__name__,
        sqlstate=getattr(cause, "sqlstate", None),
        stack="".join(traceback.format_tb(error.__traceback__)),
    )
    return problem(500, "internal-error", "Something is wrong here; it has been logged.")


def database_is_away(error: Exception) -> bool:
    """Whether an error says that the database cannot be reached, or has no connection left."""
    return isinstance(error, PoolTimeoutError | OperationalError | InterfaceError) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def _methods_of(app: FastAPI, request: Request) -> list[str]:
    """The methods that an address can be asked with; the framework would name those of one route only."""

    def fits(method: str) -> bool:
        asked = {**request.scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in app.routes)

    return [method for method in _METHODS if fits(method)]


def handle_problems(app: FastAPI) -> None:
    """Answer every error of an app with a problem document."""

    @app.exception_handler(ProblemError)
    async def _(_: Request, error: ProblemError) -> Response:
        return problem(error.status, error.code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> Response:
        # What was sent is not repeated: it may be personal.
        errors = [{"at": [str(part) for part in item["loc"]], "message": item["msg"]} for item in error.errors()]
        detail = "; ".join(f"{'.'.join(item['at'][1:]) or item['at'][0]}: {item['message']}" for item in errors)
        return problem(422, "invalid-request", detail, errors=errors)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        phrase = _CODES.get(error.status_code) or HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "-")
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(_methods_of(app, request))
        return problem(error.status_code, code, str(error.detail), headers)

    @app.exception_handler(TooManyRequestsError)
    async def _(request: Request, error: TooManyRequestsError) -> Response:
        again = {"Retry-After": str(error.retry_after)}
        if request.url.path.startswith("/v1/"):
            words = f"Too many requests from this address; come again in {error.retry_after} seconds."
            return problem(429, "too-many-requests", words, again)
        site: Site = app.state.services.site
        return site.page(request, "too_many.html", 429, headers=again)

    @app.exception_handler(ClientDisconnect)
    async def _(_: Request, __: ClientDisconnect) -> Response:
        # Nobody is there to read it; it is what the log says.
        return problem(400, "incomplete-request", "The request was not sent to its end.")

    @app.exception_handler(NotAPaidSubscriberError)
    async def _(_: Request, __: NotAPaidSubscriberError) -> Response:
        return problem(403, "not-a-paid-subscriber", "Only a paid subscriber is given a referral link.")

    @app.exception_handler(UnknownAccountError)
    async def _(_: Request, __: UnknownAccountError) -> Response:
        return problem(404, "unknown-account", "No such account is known; PUT /v1/accounts/{account_id} first.")

    @app.exception_handler(AccountErasedError)
    async def _(_: Request, __: AccountErasedError) -> Response:
        return problem(410, "account-erased", "The account has been erased; nothing more is stored of it.")

    @app.exception_handler(UnreachableError)
    async def _(_: Request, error: UnreachableError) -> Response:
        return _unavailable("Temporal", error)

    @app.exception_handler(StripeUnreachableError)
    async def _(_: Request, error: StripeUnreachableError) -> Response:
        return _unavailable("Stripe", error)

    @app.exception_handler(StripeRefusedError)
    async def _(_: Request, error: StripeRefusedError) -> Response:
        log.error("Stripe refused", error=str(error))
        return problem(503, "stripe-refused", f"Stripe's API refused: {error}. Look at the key.", _COME_AGAIN)

    @app.exception_handler(ApiKeyMissingError)
    async def _(_: Request, error: ApiKeyMissingError) -> Response:
        log.error("no key for Stripe's API", error=str(error))
        return problem(503, "stripe-api-key-missing", f"Not set up for this event: {error}.")

    @app.exception_handler(SQLAlchemyError)
    async def _(_: Request, error: SQLAlchemyError) -> Response:
        return _unavailable("The database", error) if database_is_away(error) else unexpected(error)
