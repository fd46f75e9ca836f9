"""What the routes work with, put together once by the app factory."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from temporalio.client import Client

from ledger import referrals
from ledger.database import Database
from ledger.facts import News
from ledger.referrals import OpenReferral, Reservation
from program.identity import IdentityHash
from program.plans import Plans
from program.referral import Stage
from runtime.settings import StarterSettings
from starter.metrics import Metrics
from starter.problems import ProblemError
from starter.tokens import Tokens
from workflows.client import ReferralOverError, ReferralRuns
from workflows.messages import CycleMoved, ReferralStart, workflow_id

_TELL_AT_ONCE = 16

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def utc_now() -> datetime:
    """The time, UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Services:
    """Everything that a route can reach."""

    settings: StarterSettings
    database: Database
    client: Client
    runs: ReferralRuns
    plans: Plans
    hashes: IdentityHash
    tokens: Tokens
    metrics: Metrics
    now: Callable[[], datetime] = utc_now

    async def tell(self, news: News, event_id: str) -> None:
        """Tell every run that the news concern.

        Raises:
            UnreachableError: at least one could not be told; all may be told again.
        """
        turns = asyncio.Semaphore(_TELL_AT_ONCE)

        async def in_turn(telling: Awaitable[None]) -> None:
            async with turns:
                await telling

        payments = [self._tell_of_payment(waiting, event_id) for waiting in news.payments]
        moves = [
            self.runs.cycle_moved(grant.referral_id, CycleMoved(grant.role, grant.expires_at)) for grant in news.moved
        ]
        told = await asyncio.gather(*map(in_turn, [*payments, *moves]), return_exceptions=True)
        for failure in told:
            if failure is not None:
                raise failure

    async def _tell_of_payment(self, waiting: OpenReferral, event_id: str) -> None:
        ids = {"referral_id": waiting.referral_id, "workflow_id": workflow_id(waiting.referral_id)}
        try:
            if waiting.stage is Stage.CLICKED:
                # The report of the signup was cut short, and a plain signal would not wake a run that waits for it.
                await self.report_signup(start_of(waiting), waiting.referee_id)
            else:
                await self.runs.payment_reported(start_of(waiting), waiting.referee_id, event_id)
        except ReferralOverError:
            # Ended from outside: an operator has to know, for the ledger still waits for it.
            self.metrics.runs_over.inc()
            log.error("paid, but the run is over", **ids)  # noqa: TRY400

    async def report_signup(self, start: ReferralStart, account_id: str) -> Stage:
        """Report a reserved signup to its run, and write down that it lapsed where the run is over already.

        Returns:
            `clicked`, as the run will decide; or the stage that the ledger knows of a run that is over.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        try:
            await self.runs.signed_up(start, account_id)
        except ReferralOverError:
            # It may have heard of this very signup before it ended.
            async with self.database.transaction() as transaction:
                return await referrals.lapse(transaction, start.referral_id)
        return Stage.CLICKED


def start_of(referral: OpenReferral | Reservation) -> ReferralStart:
    """What the run of a referral is started with."""
    return ReferralStart(
        referral.referral_id, referral.referrer_id, referral.window.clicked_at, referral.window.lapses_at
    )


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Serving = Annotated[Services, Depends(_services)]
"""The services, for a route that asks for them."""

_bearer = HTTPBearer(auto_error=False, description="One of `REFERRALS_API_KEYS`.")


def require_api_key(
    services: Serving, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Let in only who knows one of the API keys, each compared in constant time.

    Raises:
        ProblemError: 401.
    """
    given = credentials.credentials.encode() if credentials else b""
    matches = [secrets.compare_digest(given, key.get_secret_value().encode()) for key in services.settings.api_keys]
    if not any(matches):
        raise ProblemError(
            401, "unauthorized", "Give an API key: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"}
        )
