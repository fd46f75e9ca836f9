"""Whether the program is alive and ready, and its metrics."""

import asyncio
from datetime import timedelta

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy.exc import SQLAlchemyError
from temporalio.service import RPCError

from ledger.database import schema_serves
from ledger.migrate import newest_version
from starter.models import Readiness
from starter.services import Services, Serving

_PATIENCE = timedelta(seconds=3)

router = APIRouter(tags=["health"])


@router.get("/healthz", response_class=PlainTextResponse)
async def alive() -> str:
    """The program runs."""
    return "alive\n"


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def ready(services: Serving) -> Response:
    """Whether PostgreSQL, with a schema that serves this code, and Temporal can be reached."""
    schema, temporal = await asyncio.gather(_schema(services), _temporal(services))
    state = Readiness(postgres=schema is not None, schema_current=bool(schema), temporal=temporal)
    fine = state.postgres and state.schema_current and state.temporal
    return JSONResponse(state.model_dump(), 200 if fine else 503)


async def _schema(services: Services) -> bool | None:
    """Whether the schema serves this code; none where PostgreSQL is away."""
    try:
        async with asyncio.timeout(_PATIENCE.total_seconds()), services.database.transaction() as transaction:
            return await schema_serves(transaction, newest_version())
    except (SQLAlchemyError, TimeoutError, OSError):
        return None


async def _temporal(services: Services) -> bool:
    try:
        async with asyncio.timeout(_PATIENCE.total_seconds()):
            return await services.client.service_client.check_health(timeout=_PATIENCE)
    except (RPCError, RuntimeError, TimeoutError):
        return False


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(services: Serving) -> Response:
    """All metrics in Prometheus's text format; what is told of the ledger is a few seconds old at most."""
    await services.metrics.looks.look(services.database)
    return Response(services.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")
