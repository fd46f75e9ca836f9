"""Sends messages of the outbox to the backend, signed as the Standard Webhooks specification has it."""

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import NoReturn

import httpx
import structlog
from standardwebhooks import Webhook
from temporalio import activity
from temporalio.exceptions import ApplicationError

from ledger import outbox
from ledger.database import Database
from ledger.outbox import Message
from workflows.activities import DeliveryActivities
from workflows.deliveries import DeliveryOrder, DeliveryOutcome, Parcel

PATIENCE = timedelta(seconds=20)
"""How long an endpoint may take to answer."""

LONGEST_WAIT = timedelta(hours=24)
"""However long an endpoint asks to be left alone, it is tried again after that."""

USER_AGENT = "kallyai-referrals"

_GONE = 410
_ASKS_FOR_TIME = (429, 503)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where messages go. The address may hold secrets: logs and histories know the name alone.

    Args:
        url: the address.
        secrets: what signs, the newest first; each gives one signature, so that one can be replaced by another.
    """

    url: str
    secrets: Sequence[str]


def http_client() -> httpx.AsyncClient:
    """What messages are sent through: an endpoint may take its time, and a redirect is no answer."""
    return httpx.AsyncClient(timeout=PATIENCE.total_seconds(), follow_redirects=False)


class Deliveries(DeliveryActivities):
    """The steps of a delivery, with what they need."""

    def __init__(self, database: Database, endpoints: Mapping[str, Endpoint], http: httpx.AsyncClient) -> None:
        """Deliver what the outbox in `database` holds to these endpoints, by name."""
        self._database = database
        self._endpoints = endpoints
        self._http = http

    @activity.defn
    async def begin_delivery(self, order: DeliveryOrder) -> list[str]:
        """Find out which endpoints the message has to go to."""
        if unknown := set(order.endpoints) - set(self._endpoints):
            raise ApplicationError(f"no endpoint is named {', '.join(sorted(unknown))}", non_retryable=True)
        everybody = sorted(self._endpoints)
        again = (order.endpoints or everybody) if order.again else ()
        async with self._database.discreet_transaction() as transaction:
            return await outbox.begin(transaction, order.message_id, everybody, again)

    @activity.defn
    async def deliver(self, parcel: Parcel) -> None:
        """Send the message to an endpoint, once; fails where the endpoint does not take it."""
        endpoint = self._endpoints.get(parcel.endpoint)
        if endpoint is None:
            raise ApplicationError("there is no such endpoint any more", non_retryable=True)
        async with self._database.discreet_transaction() as transaction:
            message = await outbox.message(transaction, parcel.message_id)
        ids = {"message_id": parcel.message_id, "type": message.type, "endpoint": parcel.endpoint}
        answer = await self._post(endpoint, parcel.message_id, body_of(message))
        if answer is not None and answer.is_success:
            async with self._database.discreet_transaction() as transaction:
                await outbox.delivered(transaction, parcel.message_id, parcel.endpoint)
            log.info("delivered", **ids)
            return
        status = None if answer is None else answer.status_code
        log.warning("not taken", **ids, status=status, attempt=activity.info().attempt)
        if answer is None:
            _try_again("no answer", None)
        if status == _GONE:
            async with self._database.discreet_transaction() as transaction:
                await outbox.endpoint_is_gone(transaction, parcel.endpoint)
            raise ApplicationError("the endpoint answered 410 Gone", type="EndpointGone", non_retryable=True)
        _try_again(f"the endpoint answered {status}", _asked_for(answer))

    @activity.defn
    async def end_delivery(self, outcome: DeliveryOutcome) -> None:
        """Write down that the delivery is over, and which endpoints have not taken the message."""
        async with self._database.discreet_transaction() as transaction:
            await outbox.end(transaction, outcome.message_id, outcome.given_up)
        for endpoint, problem in outcome.given_up.items():
            log.error("delivery given up", message_id=outcome.message_id, endpoint=endpoint, problem=problem)

    async def _post(self, endpoint: Endpoint, message_id: str, body: bytes) -> httpx.Response | None:
        """Post a body; none without an answer. What the endpoint says beyond its status is not even read."""
        headers = {
            "content-type": "application/json",
            "user-agent": USER_AGENT,
            **signed(endpoint.secrets, message_id, datetime.now(UTC), body),
        }
        try:
            async with (
                asyncio.timeout(PATIENCE.total_seconds()),
                self._http.stream("POST", endpoint.url, content=body, headers=headers) as answer,
            ):
                return answer
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            # Their words may hold the address.
            return None


def body_of(message: Message) -> bytes:
    """The body of a message, the same one at every attempt."""
    document = {"type": message.type, "timestamp": message.at.isoformat(), "data": message.data}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def signed(secrets: Sequence[str], message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """The headers that show whose message it is: its id, the time of the attempt, a signature by each secret."""
    signatures = [Webhook(secret).sign(message_id, at, body.decode()) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _asked_for(answer: httpx.Response) -> timedelta | None:
    """How long the endpoint asks to be left alone (`Retry-After`), if it does."""
    asked = answer.headers.get("retry-after", "").strip()
    if answer.status_code not in _ASKS_FOR_TIME or not asked:
        return None
    if asked.isdecimal():
        return timedelta(seconds=min(int(asked), LONGEST_WAIT.total_seconds()))
    try:
        return parsedate_to_datetime(asked).astimezone(UTC) - datetime.now(UTC)
    except (ValueError, OverflowError):
        return None


def _try_again(problem: str, asked: timedelta | None) -> NoReturn:
    """Fail this attempt; the next one comes as the policy has it, varied a little, and not before the endpoint asks.

    Messages that failed together would otherwise all come back together.
    """
    info = activity.info()
    policy = info.retry_policy
    delay = None
    if policy is not None:
        longest = policy.maximum_interval or LONGEST_WAIT
        seconds = policy.initial_interval.total_seconds() * policy.backoff_coefficient ** min(info.attempt - 1, 60)
        delay = min(timedelta(seconds=min(seconds, longest.total_seconds())), longest)
        delay *= random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        if asked is not None:
            delay = max(delay, min(asked, LONGEST_WAIT))
    raise ApplicationError(problem, type="NotTaken", next_retry_delay=delay)
