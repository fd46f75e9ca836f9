"""The app factory: everything is put together here, and nowhere else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import Lifespan
from temporalio.client import Client
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from billing.api import StripeApi
from ledger.database import Database
from program.identity import IdentityHash
from program.plans import load_plans
from runtime.settings import StarterSettings
from starter import (
    accounts,
    api_page,
    clicks,
    health,
    portal,
    portal_sessions,
    public_pages,
    referrals,
    signups,
    stripe_webhooks,
    usage,
)
from starter.access import AccessLog
from starter.bodies import BodyLimit
from starter.limits import ClickLimit, Limits
from starter.live import LiveUpdates
from starter.looks import Looks
from starter.metrics import Metrics
from starter.problems import Problem, documented, handle_problems
from starter.services import Services
from starter.signatures import Signatures
from starter.site import Site
from starter.tokens import Tokens
from workflows.client import ReferralRuns

VERSION = "0.1.0"


def create_app(settings: StarterSettings, client: Client) -> FastAPI:
    """The whole HTTP side.

    Args:
        settings: what the environment holds.
        client: connected to Temporal, or about to be on first use.

    Raises:
        PlansError: the plans file cannot be used.
    """
    plans = load_plans(settings.plans_file)
    metrics = Metrics([plan.id for plan in plans], Looks())
    database = Database(settings.database_url.get_secret_value(), count=metrics.count)
    services = Services(
        settings=settings,
        database=database,
        client=client,
        runs=ReferralRuns(client, settings.task_queue),
        plans=plans,
        hashes=IdentityHash(settings.identity_hash_key.get_secret_value()),
        tokens=Tokens([secret.get_secret_value() for secret in settings.token_secrets], settings.attribution_window),
        metrics=metrics,
        site=Site(settings, plans),
        live=LiveUpdates(database),
        signatures=Signatures(database),
        limits=Limits(settings, metrics),
        stripe=_stripe(settings),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await services.live.close()
        await database.close()
        if services.stripe:
            await services.stripe.close()

    app = _interface(lifespan)
    app.state.services = services
    app.add_middleware(BodyLimit)
    app.add_middleware(ClickLimit, limits=services.limits, site=services.site)
    app.add_middleware(AccessLog, metrics=metrics)
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.trusted_proxies)
    handle_problems(app)
    return app


def described() -> dict[str, Any]:
    """The OpenAPI document, which is the same whatever the settings are."""
    return _interface().openapi()


def _interface(lifespan: Lifespan[FastAPI] | None = None) -> FastAPI:
    """All calls, with nothing behind them yet."""
    app = FastAPI(
        title="KallyAI referral program",
        version=VERSION,
        summary="Clicks start referrals, signups and payments advance them; here is the way in.",
        lifespan=lifespan,
        # Their pages run scripts of another host on the site of the dashboard; ours is a page of this one.
        docs_url=None,
        redoc_url=None,
        # A redirect of the framework's own would be made from whatever Host the caller sends.
        redirect_slashes=False,
    )
    # A request is compared with one route after the other: first come those that are called the most.
    for module in (
        clicks,
        accounts,
        signups,
        stripe_webhooks,
        usage,
        referrals,
        portal_sessions,
        portal,
        public_pages,
        health,
        api_page,
    ):
        app.include_router(module.router)
    _name_problems(app)
    return app


def _stripe(settings: StarterSettings) -> StripeApi | None:
    key = settings.stripe_api_key
    return StripeApi(key.get_secret_value(), settings.stripe_api_base) if key else None


def _name_problems(app: FastAPI) -> None:
    """Make the problem document known to the OpenAPI document, which the routes refer to."""
    describe = app.openapi

    def openapi() -> dict[str, object]:
        document = describe()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("Problem", Problem.model_json_schema())
        # What FastAPI would answer to a request that is not as it should be; here that is a problem as well.
        for methods in document["paths"].values():
            for operation in methods.values():
                if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                    del operation["responses"]["422"]
                if "requestBody" in operation:
                    # No text at all, or too much of it.
                    for status, problem in documented(400, 413).items():
                        operation["responses"].setdefault(str(status), problem)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
