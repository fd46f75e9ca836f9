"""Stripe's API, as far as it is read here: objects and lists of them, paced, in the pinned version.

Stripe admits 100 reads a second of a live account and 25 of a sandbox, all programs of the account together. Each
process keeps to a pace of its own, far below that.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import stripe
from aiolimiter import AsyncLimiter

from billing.events import NEWEST_VERSION

Object = dict[str, Any]
"""An object of Stripe's, as parsed from its JSON."""

REQUESTS_A_SECOND = 5.0
"""The pace of a process, evenly spaced; a fifth of what a sandbox admits."""

LARGEST_PAGE = 100
"""Stripe gives no more objects at once."""

_TIMEOUT = timedelta(seconds=10)
_RETRIES = 2


class StripeUnreachableError(Exception):
    """Stripe could not be reached, is overloaded or out of order; trying again later may help."""


class StripeRefusedError(Exception):
    """Stripe refused: the key may not, or what is asked for does not exist. Asking again alone does not help.

    Args:
        status: the HTTP status of the answer.
        code: Stripe's word for why, where it gives one.
    """

    def __init__(self, message: str, status: int, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    @property
    def missing(self) -> bool:
        """Whether Stripe knows no such thing: neither what is asked for, nor what a list is to be of."""
        return self.status == 404 or self.code == "resource_missing"


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, in Stripe's order: the newest first."""

    objects: tuple[Object, ...]
    has_more: bool


class _Paced(stripe.HTTPXClient):
    """Sends nothing faster than the pace, attempts that are repeated included."""

    def __init__(self, limiter: AsyncLimiter, timeout: timedelta) -> None:
        super().__init__(timeout=timeout.total_seconds())
        self._limiter = limiter

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        await self._limiter.acquire()
        return await super().request_async(method, url, headers, post_data)


class StripeApi:
    """Reads from Stripe's API, or from another host that speaks it. One for a process, which shares its pace."""

    def __init__(
        self,
        api_key: str,
        base: str = stripe.DEFAULT_API_BASE,
        *,
        requests_a_second: float = REQUESTS_A_SECOND,
        timeout: timedelta = _TIMEOUT,
        retries: int = _RETRIES,
    ) -> None:
        """Connect on first use.

        Args:
            api_key: a secret or restricted key that may read.
            base: where the API is, without a trailing slash.
            requests_a_second: the pace.
            timeout: for how long each attempt may take.
            retries: how often the `stripe` package repeats what failed before it is reported.
        """
        # One at a time, evenly spaced: a bucket that holds more would let a burst through.
        self._http = _Paced(AsyncLimiter(1, 1 / requests_a_second), timeout)
        self._client = stripe.StripeClient(
            api_key,
            stripe_version=NEWEST_VERSION,
            base_addresses={"api": base},
            max_network_retries=retries,
            http_client=self._http,
        )

    async def get(self, path: str, params: Mapping[str, Any] | None = None) -> Object:
        """Read one object, or one page of a list as Stripe answers it.

        Args:
            path: below the base, `/v1/…`; an id in it has to be a known one or quoted.
            params: the query, nested as the `stripe` package takes it.

        Raises:
            StripeUnreachableError: no answer, or one that says to come again.
            StripeRefusedError: Stripe says no.
        """
        try:
            answer = await self._client.raw_request_async("get", path, **(params or {}))
        except stripe.StripeError as error:
            raise _told(path, error) from None
        if not isinstance(answer.data, dict):
            raise StripeUnreachableError(f"{_kind(path)}: the answer is no object")
        return answer.data

    async def page(self, path: str, params: Mapping[str, Any] | None = None) -> Page:
        """Read one page of a list.

        Raises:
            StripeUnreachableError: no answer, or one that says to come again.
            StripeRefusedError: Stripe says no.
        """
        answer = await self.get(path, {"limit": LARGEST_PAGE, **(params or {})})
        objects = answer.get("data")
        if not isinstance(objects, list) or not all(isinstance(one, dict) and "id" in one for one in objects):
            raise StripeUnreachableError(f"{_kind(path)}: the answer is no list")
        return Page(tuple(objects), bool(answer.get("has_more")) and bool(objects))

    async def list_all(self, path: str, params: Mapping[str, Any] | None = None) -> AsyncIterator[Object]:
        """Read a whole list, page by page, the newest first.

        Raises:
            StripeUnreachableError: no answer, or one that says to come again.
            StripeRefusedError: Stripe says no.
        """
        page = await self.page(path, params)
        while True:
            for one in page.objects:
                yield one
            if not page.has_more:
                return
            page = await self.page(path, {**(params or {}), "starting_after": page.objects[-1]["id"]})

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]


def _kind(path: str) -> str:
    """What was asked for, without whose it is."""
    return "/".join(path.split("/")[:3])


def _told(path: str, error: stripe.StripeError) -> StripeUnreachableError | StripeRefusedError:
    """The error in words that may be logged: Stripe's own may repeat what was sent (rule 24)."""
    status = error.http_status
    if status is None:
        return StripeUnreachableError(f"{_kind(path)}: {type(error).__name__}")
    code = f" ({error.code})" if error.code else ""
    message = f"{_kind(path)}: HTTP {status}{code}"
    if isinstance(error, stripe.RateLimitError) or status in (409, 429) or status >= 500 or status < 400:
        return StripeUnreachableError(message)
    return StripeRefusedError(message, status, error.code)
