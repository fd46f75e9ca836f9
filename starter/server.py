"""The HTTP server of one app."""

import socket
from collections.abc import Awaitable, Callable

import uvicorn

from starter.live import LiveUpdates

GRACEFUL_SHUTDOWN_SECONDS = 10


class Server(uvicorn.Server):
    """Ends the streams before it waits for all requests to end: they would go on for as long as anybody looks."""

    def __init__(
        self, config: uvicorn.Config, live: LiveUpdates, at_the_end: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Serve as `config` says; `live` has the streams. `at_the_end` is done last: a signal ends the process then."""
        super().__init__(config)
        self._live = live
        self._at_the_end = at_the_end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, once what is under way is done."""
        await self._live.close()
        await super().shutdown(sockets)
        if self._at_the_end:
            await self._at_the_end()
