"""The HTTP server of one app."""

import socket

import uvicorn

from starter.live import LiveUpdates

GRACEFUL_SHUTDOWN_SECONDS = 10


class Server(uvicorn.Server):
    """Ends the streams before it waits for all requests to end: they would go on for as long as anybody looks."""

    def __init__(self, config: uvicorn.Config, live: LiveUpdates) -> None:
        """Serve as `config` says; `live` has the streams."""
        super().__init__(config)
        self._live = live

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, once what is under way is done."""
        await self._live.close()
        await super().shutdown(sockets)
