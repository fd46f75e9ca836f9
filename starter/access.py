"""One log line and one observation a request: the route, never its parameters, and no personal data."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

import structlog

from starter.metrics import Metrics
from starter.problems import unexpected

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class AccessLog:
    """Wraps an app."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        """Observe the requests of `app`."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, and say what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, False

        async def observe(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        began = time.perf_counter()
        try:
            await self._app(scope, receive, observe)
        except Exception as error:
            # Not left to the server, which would log what the error says (rule 24).
            answer = unexpected(error)
            if not started:
                await answer(scope, receive, observe)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, scope["method"], status).observe(seconds)
            # A flood is counted; written down it would fill the disk.
            if route not in _QUIET and status != HTTPStatus.TOO_MANY_REQUESTS:
                log.info(
                    "request", route=route, method=scope["method"], status=status, milliseconds=round(seconds * 1000, 1)
                )
