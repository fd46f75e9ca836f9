"""The starter on a port of its own: what is streamed to a browser needs a network in between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn

from starter.server import GRACEFUL_SHUTDOWN_SECONDS, Patience, Server
from tests.http_support import Starter
from tests.support import until


@asynccontextmanager
async def listening(starter: Starter) -> AsyncIterator[str]:
    """Serve the app of a test over HTTP; the address."""
    async with serving(starter) as server:
        yield f"http://127.0.0.1:{port_of(server)}"


def port_of(server: Server) -> int:
    """Where a server listens."""
    return int(server.servers[0].sockets[0].getsockname()[1])


@asynccontextmanager
async def serving(starter: Starter, patience: Patience | None = None) -> AsyncIterator[Server]:
    """The server of the app of a test, with some patience."""
    config = uvicorn.Config(
        starter.app,
        host="127.0.0.1",
        port=0,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )
    server = Server(config, starter.app.state.services.live, patience)
    running = asyncio.create_task(server._serve())
    try:

        async def ready() -> bool:
            return server.started

        await until(ready, bool)
        yield server
    finally:
        server.should_exit = True
        await running


class Stream:
    """An open stream of a dashboard's news, as a browser reads it."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()
        self.last_id: str | None = None

    async def next(self, seconds: float = 60.0) -> str | None:
        """The name of the next event; none when the stream has ended as it should."""
        name = ""
        async with asyncio.timeout(seconds):
            async for line in self._lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "id":
                    self.last_id = value
                elif not line and name:
                    return name
        return None


@asynccontextmanager
async def following(
    url: str, cookie: str, version: str | None = None, last: str | None = None
) -> AsyncIterator[Stream]:
    """Follow the news of a dashboard."""
    headers = {"Cookie": f"kally_portal={cookie}", "Accept": "text/event-stream"}
    if last is not None:
        headers["Last-Event-ID"] = last
    async with (
        httpx.AsyncClient(base_url=url, timeout=30) as browser,
        browser.stream("GET", "/portal/events", params={"version": version} if version else {}, headers=headers) as got,
    ):
        yield Stream(got)
