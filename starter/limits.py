"""How much one address may ask for: clicks on links, guesses at codes and at what opens a dashboard, wrong API keys.

What is counted and how is the `limits` package's; where the counts are kept is ours, for two reasons. Its own storage
in memory has an entry for every address that came, and goes through all of them at each count. And an address is
personal (rule 24): here it passes through a hash with a key of this process alone, and what is left is a number, in a
table that never grows. What is held off by it, and why there: docs/security.md.
"""

import hashlib
import secrets
import time
from array import array
from collections.abc import Awaitable, Callable, MutableMapping
from enum import StrEnum
from http import HTTPStatus
from math import ceil
from typing import Any

import structlog
from fastapi import Request
from fastapi.responses import HTMLResponse
from limits import RateLimitItem, parse_many
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter

from program.identity import network_of
from runtime.settings import UNLIMITED, StarterSettings
from starter.metrics import Metrics
from starter.site import NO_STORE, SECURITY_HEADERS, Site

CELLS = 1 << 16
"""In each row of a table; two rows take 2 MiB, whoever comes."""

ROWS = 2

SAID_EVERY_SECONDS = 60.0
"""A flood is counted; it is not written down line by line."""

_LINKS = "/r/"

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Limited(StrEnum):
    """What one address may do only so often."""

    CLICKS = "clicks"
    UNKNOWN_CODES = "unknown_codes"
    PORTAL_TOKENS = "portal_tokens"
    API_KEYS = "api_keys"


class TooManyRequestsError(Exception):
    """An address has asked for more than it may."""

    def __init__(self, limited: Limited, retry_after: int) -> None:
        """Say of what it was too much, and in how many seconds it may ask again."""
        super().__init__(limited.value)
        self.limited = limited
        self.retry_after = retry_after


class Table(Storage):
    """Counts in a table of fixed size: a count-min sketch, in the `limits` package's form.

    A key has one cell in each row, and its count is the smallest of them. So others that fall on a cell of it can only
    make it greater, and only those that fall on all of its cells at once. Which those are nobody can know: the key of
    the hash is random, and of this process.
    """

    STORAGE_SCHEME = None

    def __init__(self, cells: int = CELLS) -> None:
        """Make the table; it takes all its memory now."""
        super().__init__()
        self._cells = cells
        self._key = secrets.token_bytes(32)
        self._counts = array("Q", bytes(8 * cells * ROWS))
        self._ends = array("d", bytes(8 * cells * ROWS))

    def __len__(self) -> int:
        """How many counts are kept: always the same."""
        return len(self._counts)

    @property
    def in_use(self) -> int:
        """How many of them count something now."""
        now = time.time()
        return sum(end > now for end in self._ends)

    def _places(self, key: str) -> tuple[int, int]:
        digest = hashlib.blake2b(key.encode(), digest_size=16, key=self._key).digest()
        first, second = int.from_bytes(digest[:8]), int.from_bytes(digest[8:])
        return first % self._cells, self._cells + second % self._cells

    @property
    def base_exceptions(self) -> type[Exception]:
        """Nothing of it can fail but the memory."""
        return MemoryError

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count, in a window of so many seconds that begins with the first; gives the count."""
        now, counted = time.time(), []
        for place in self._places(key):
            if self._ends[place] <= now:
                self._counts[place] = 0
                self._ends[place] = now + expiry
            self._counts[place] += amount
            counted.append(self._counts[place])
        return min(counted)

    async def get(self, key: str) -> int:
        """The count."""
        now = time.time()
        return min(self._counts[place] if self._ends[place] > now else 0 for place in self._places(key))

    async def get_expiry(self, key: str) -> float:
        """When the window is over, in seconds since 1970; of one that has not begun, now."""
        return max(time.time(), min(self._ends[place] for place in self._places(key)))

    async def check(self) -> bool:
        """Whether it works; it does."""
        return True

    async def reset(self) -> int | None:
        """Forget all counts."""
        for place in range(len(self)):
            self._counts[place] = 0
        return len(self)

    async def clear(self, key: str) -> None:
        """Forget the count of a key, and of whoever shares a cell with it."""
        for place in self._places(key):
            self._counts[place] = 0


class Limit:
    """One limit, of one window or of several."""

    def __init__(self, rate: str) -> None:
        """Take the rate, as the setting has it."""
        items: list[RateLimitItem] = [] if rate == UNLIMITED else parse_many(rate)
        # A table for each: the ends of a longer window would stand in the cells of a shorter one.
        self.tables = tuple(Table() for _ in items)
        self._windows = tuple(
            (item, FixedWindowRateLimiter(table)) for item, table in zip(items, self.tables, strict=True)
        )

    async def take(self, who: str) -> int:
        """Count once more; gives in how many seconds to come again, 0 where that is now."""
        wait = 0
        for item, window in self._windows:
            if not await window.hit(item, who):
                wait = max(wait, await self._wait(item, window, who))
        return wait

    async def look(self, who: str) -> int:
        """In how many seconds to come again, 0 where that is now; counts nothing."""
        wait = 0
        for item, window in self._windows:
            if not await window.test(item, who):
                wait = max(wait, await self._wait(item, window, who))
        return wait

    @staticmethod
    async def _wait(item: RateLimitItem, window: FixedWindowRateLimiter, who: str) -> int:
        reset = (await window.get_window_stats(item, who)).reset_time
        return max(1, ceil(reset - time.time()))


class Limits:
    """All limits of one app."""

    def __init__(self, settings: StarterSettings, metrics: Metrics) -> None:
        """Take the rates of the settings; what is refused is counted in `metrics`."""
        self.limits = {
            Limited.CLICKS: Limit(settings.limit_clicks),
            Limited.UNKNOWN_CODES: Limit(settings.limit_unknown_codes),
            Limited.PORTAL_TOKENS: Limit(settings.limit_portal_tokens),
            Limited.API_KEYS: Limit(settings.limit_api_keys),
        }
        self._metrics = metrics
        self._trusts = bool(settings.trusted_proxies)
        self._said: dict[Limited, float] = {}

    async def take(self, limited: Limited, request: Request) -> None:
        """Count a request.

        Raises:
            TooManyRequestsError: it was one too many.
        """
        self._refuse(limited, request, await self.limits[limited].take(_who(request)))

    async def look(self, limited: Limited, request: Request) -> None:
        """Count nothing.

        Raises:
            TooManyRequestsError: whatever came now would be one too many.
        """
        self._refuse(limited, request, await self.limits[limited].look(_who(request)))

    def _refuse(self, limited: Limited, request: Request, wait: int) -> None:
        if not wait:
            return
        self._metrics.limited.labels(limited).inc()
        now = time.monotonic()
        if now - self._said.get(limited, -SAID_EVERY_SECONDS) >= SAID_EVERY_SECONDS:
            self._said[limited] = now
            log.warning("too many requests", limited=limited.value)
            if not self._trusts and "x-forwarded-for" in request.headers:
                # Whoever comes by it counts as one address, and so are all refused for what some did.
                log.warning("a proxy is not trusted", setting="REFERRALS_TRUSTED_PROXIES")
        raise TooManyRequestsError(limited, wait)


class ClickLimit:
    """Wraps an app: whoever follows too many links, or guessed too many codes, does not come as far as its routes."""

    def __init__(self, app: App, limits: Limits, site: Site) -> None:
        """Limit the clicks on the links of `app`."""
        self._app = app
        self._limits = limits
        # Made once: a flood is to cost as little as can be.
        self._page = site.render("too_many.html").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; a click too many is answered 429."""
        if scope["type"] == "http" and scope["path"].startswith(_LINKS):
            request = Request(scope)
            try:
                await self._limits.take(Limited.CLICKS, request)
                await self._limits.look(Limited.UNKNOWN_CODES, request)
            except TooManyRequestsError as error:
                headers = {**SECURITY_HEADERS, "Cache-Control": NO_STORE, "Retry-After": str(error.retry_after)}
                await HTMLResponse(self._page, HTTPStatus.TOO_MANY_REQUESTS, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _who(request: Request) -> str:
    """Who counts as one: an IPv4 address, a network of IPv6 (/64); all together of whom none is known."""
    try:
        return network_of(request.client.host) if request.client else ""
    except ValueError:
        return ""
