"""The HTTP server of one app, and how long it waits for whom."""

import resource
import socket
import time
from asyncio import Protocol, TimerHandle, Transport
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from program.identity import network_of
from starter.live import LiveUpdates

GRACEFUL_SHUTDOWN_SECONDS = 10

FILES_BESIDE_CONNECTIONS = 256
"""How many files a process has open that are nobody's connection: the pool, Temporal, the listeners, templates."""

SAID_EVERY_SECONDS = 60.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the server waits for whoever is slow, and for how many at once.

    Args:
        head_seconds: a connection sends all headers of a request within, from its opening or the request's first byte.
        body_seconds: and then its whole body.
        reading_seconds: whoever is sent more than fits between us takes some of it within.
        head_bytes: headers and address of a request together.
        connections: at once.
        connections_of_one: of them from one address, or network of IPv6; none where all come from a proxy.
    """

    head_seconds: float = 20.0
    body_seconds: float = 30.0
    reading_seconds: float = 30.0
    head_bytes: int = 65_536
    connections: int = 4000
    connections_of_one: int | None = 1000


def room_for(connections: int) -> int:
    """How many connections the process can have open, up to so many; its soft limit is raised for them."""
    wanted = connections + FILES_BESIDE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - FILES_BESIDE_CONNECTIONS)
    return connections


class _Door:
    """Who is connected, as far as that is limited. An address is known while a connection from it is open."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self._from: Counter[str] = Counter()
        self._connected = 0
        self._said: dict[str, float] = {}

    def enter(self, who: str) -> bool:
        if self._connected >= self.patience.connections:
            self.say("too many connections")
            return False
        of_one = self.patience.connections_of_one
        if of_one is not None and self._from[who] >= of_one:
            self.say("too many connections from one address")
            return False
        self._connected += 1
        self._from[who] += 1
        return True

    def leave(self, who: str) -> None:
        self._connected -= 1
        self._from[who] -= 1
        if not self._from[who]:
            del self._from[who]

    def say(self, what: str) -> None:
        """Once in a while: who floods the server shall not flood its log."""
        now = time.monotonic()
        if now - self._said.get(what, -SAID_EVERY_SECONDS) >= SAID_EVERY_SECONDS:
            self._said[what] = now
            log.warning(what)


class _Connection(HttpToolsProtocol):
    """A connection that nobody holds open for nothing.

    The server's own class waits without end for the rest of a request, and for whoever does not take its answer.
    """

    def __init__(self, door: _Door, **how: Any) -> None:
        super().__init__(**how)
        self._door = door
        self._who: str | None = None
        self._waiting: TimerHandle | None = None
        self._writing: TimerHandle | None = None
        self._head_bytes = 0
        self._in_body = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        peer = transport.get_extra_info("peername")
        who = _network(peer)
        if not self._door.enter(who):
            self.transport = transport
            self._end(b"503 Service Unavailable", b"Retry-After: 2\r\n")
            return
        self._who = who
        super().connection_made(transport)
        self._wait(self._door.patience.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        self.resume_writing()
        if self._who is not None:
            self._door.leave(self._who)
            self._who = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:
            # Also line ends that belong to no request: they would hold the connection open.
            self._wait(self._door.patience.head_seconds)
        if not self._in_body:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_body and self._head_bytes > self._door.patience.head_bytes:
            self._door.say("headers without end")
            self._end(b"431 Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._wait(self._door.patience.body_seconds)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._head_bytes = 0
        self._wait(None)
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self._door.patience.reading_seconds, self._not_read)

    def resume_writing(self) -> None:
        if self.flow is not None:
            super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _wait(self, seconds: float | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = None if seconds is None else self.loop.call_later(seconds, self._not_sent)

    def _not_sent(self) -> None:
        self._door.say("a request was not sent to its end in time")
        if self._in_body:
            # Its route is reading it, and is told that nobody is there any more.
            self.transport.abort()
        else:
            self._end(b"408 Request Timeout")

    def _not_read(self) -> None:
        self._door.say("an answer was not taken in time")
        self.transport.abort()

    def _end(self, status: bytes, headers: bytes = b"") -> None:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            # Nothing can be said in the middle of another answer.
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %b\r\n%bContent-Length: 0\r\nConnection: close\r\n\r\n" % (status, headers))
            self.transport.close()


def _network(peer: object) -> str:
    try:
        return network_of(peer[0]) if isinstance(peer, tuple) else ""
    except ValueError:
        return ""


class Server(uvicorn.Server):
    """Waits for nobody without end, and ends the streams before it waits for all requests to end.

    Streams would go on for as long as anybody looks.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        live: LiveUpdates,
        patience: Patience | None = None,
        at_the_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Serve as `config` says, with some patience; `live` has the streams.

        `at_the_end` is done last: a signal ends the process then.
        """
        super().__init__(config)
        self._live = live
        self._at_the_end = at_the_end
        self._door = _Door(patience or Patience())
        config.http = self._connection  # type: ignore[assignment]
        # Nothing here speaks WebSocket, and a connection that changed to it would not be watched.
        config.ws = "none"

    def _connection(self, **how: Any) -> Protocol:
        return _Connection(self._door, **how)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, once what is under way is done."""
        await self._live.close()
        await super().shutdown(sockets)
        if self._at_the_end:
            await self._at_the_end()
