"""`POST /stripe/webhooks`: verified, reduced to facts, stored in one transaction, and told to the runs concerned."""

import json
import time
from collections.abc import Sequence

import stripe
import structlog
from fastapi import APIRouter, Request
from pydantic import SecretStr

from billing.events import HANDLED_TYPES, MalformedEventError
from billing.facts import EventFacts
from billing.thin import read_event
from ledger import facts, late_prices
from starter.models import WebhookAnswer
from starter.problems import ProblemError, documented
from starter.services import Services, Serving

TOLERANCE_SECONDS = 300
"""How far the time of a signature may be from now, either way."""

LARGEST_BODY = 1_048_576
"""In bytes; Stripe's events are far smaller."""

router = APIRouter(tags=["stripe"])
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@router.post(
    "/stripe/webhooks",
    responses=documented(400, 503),
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def receive_event(request: Request, services: Serving) -> WebhookAnswer:
    """Take an event from Stripe, a snapshot or a thin one. 200: done, or nothing to us. 503: not done, send it again.

    A thin event says nothing without a key for Stripe's API, so it is answered with 503 until there is one: Stripe
    shows that in its dashboard, and what it sends again then is not lost.
    """
    body = await _body(request)
    signature = request.headers.get("stripe-signature")
    try:
        _verify(body, signature, services.settings.stripe_webhook_secrets)
    except ProblemError:
        services.metrics.stripe_events.labels("unknown", "forged").inc()
        if signature is not None and "v1=" in signature:  # what bears none was not sent by Stripe
            await services.signatures.did_not_fit()
        raise
    await services.signatures.fitted()
    try:
        event = await read_event(json.loads(body), services.stripe)
    except (MalformedEventError, ValueError, RecursionError) as error:
        services.metrics.stripe_events.labels("unknown", "malformed").inc()
        detail = str(error) if isinstance(error, MalformedEventError) else "the body is no JSON"
        log.warning("malformed event", problem=detail)
        raise ProblemError(400, "malformed-event", f"Not an event as Stripe documents it: {detail}") from None
    kind = event.type if event.type in HANDLED_TYPES else "other"
    if not event.facts:
        services.metrics.stripe_events.labels(kind, "not_ours").inc()
        return WebhookAnswer(handled=False)
    if not await services.keeping.keep(event):
        await _apply_and_tell(event, services)
    services.metrics.stripe_events.labels(kind, "handled").inc()
    return WebhookAnswer(handled=True)


async def _apply_and_tell(event: EventFacts, services: Services) -> None:
    async with services.database.transaction() as transaction:
        news = await facts.apply_event(transaction, event, services.plans, services.hashes)
        if news.none:
            await facts.mark_signalled(transaction, event.event_id, last=True)
    if not news.none:
        await services.messenger.tell(news, event.event_id)
        async for late in late_prices.news(services.database.transaction, news, services.plans):
            await services.messenger.tell(late, event.event_id)
        async with services.database.statement() as statement:
            await facts.mark_signalled(statement, event.event_id)
    log.info(
        "event handled",
        event_id=event.event_id,
        event_type=event.type,
        referral_ids=sorted({*(w.referral_id for w in news.payments), *(m.referral_id for m in news.moved)}),
    )


async def _body(request: Request) -> bytes:
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > LARGEST_BODY:
            raise ProblemError(400, "malformed-event", "The body is larger than any event of Stripe's.")
    return bytes(chunks)


def _verify(body: bytes, header: str | None, secrets: Sequence[SecretStr]) -> None:
    """Let pass only what was signed with one of the secrets, and not long ago.

    Raises:
        ProblemError: 400.
    """
    # The library cannot compare a signature with letters that no signature has.
    for secret in secrets if header is None or header.isascii() else ():
        try:
            stripe.WebhookSignature.verify_header(body, header, secret.get_secret_value(), TOLERANCE_SECONDS)
        except (stripe.SignatureVerificationError, UnicodeDecodeError):
            continue
        if _signed_at(header or "") <= time.time() + TOLERANCE_SECONDS:
            return
    raise ProblemError(400, "invalid-signature", "The Stripe-Signature header does not fit the body.")


def _signed_at(header: str) -> float:
    # As the library reads it: what follows a second equals sign is nothing.
    times = [part.split("=", 2)[1] for part in header.split(",") if part.startswith("t=")]
    return float(times[0])
