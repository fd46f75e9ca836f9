"""What the routes work with, put together once by the app factory."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from temporalio.client import Client

from activities.telling import Messenger
from billing.api import StripeApi
from ledger.database import Database
from program.identity import IdentityHash
from program.plans import Plans
from runtime.settings import StarterSettings
from starter.keeping import Keeping
from starter.limits import Limited, Limits
from starter.live import LiveUpdates
from starter.metrics import Metrics
from starter.problems import ProblemError
from starter.signatures import Signatures
from starter.site import Site
from starter.tokens import Tokens
from workflows.client import ReferralRuns


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
    site: Site
    live: LiveUpdates
    signatures: Signatures
    limits: Limits
    stripe: StripeApi | None = None
    now: Callable[[], datetime] = utc_now

    @property
    def messenger(self) -> Messenger:
        """Who tells the runs what the ledger has learnt."""
        return Messenger(self.runs, self.database, self.metrics.runs_over.inc)

    @cached_property
    def keeping(self) -> Keeping:
        """Who stores the events that concern no run: always the same one, for they are stored together."""
        return Keeping(self.database, self.hashes)


# Asynchronous, like every dependency: others are sent to a thread, which costs more than most routes do.
async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Serving = Annotated[Services, Depends(_services)]
"""The services, for a route that asks for them."""

_bearer = HTTPBearer(auto_error=False, description="One of `REFERRALS_API_KEYS`.")


async def require_api_key(
    request: Request, services: Serving, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Let in only who knows one of the API keys, each compared in constant time.

    A right one always does, however many wrong ones came from where it comes: nobody locks the backend out.

    Raises:
        ProblemError: 401.
        TooManyRequestsError: too many wrong ones came.
    """
    given = credentials.credentials.encode() if credentials else b""
    matches = [secrets.compare_digest(given, key.get_secret_value().encode()) for key in services.settings.api_keys]
    if not any(matches):
        await services.limits.take(Limited.API_KEYS, request)
        raise ProblemError(
            401, "unauthorized", "Give an API key: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"}
        )
