"""Whoever is slow, or comes with too much at once, holds nobody up: on real sockets (docs/security.md)."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from starter.server import FILES_BESIDE_CONNECTIONS, Patience, Server, room_for
from tests.http_support import API_KEYS, Starter
from tests.listening import port_of, serving
from tests.support import until

SHORT = Patience(head_seconds=0.3, body_seconds=0.3, reading_seconds=0.3)
LONG = Patience(head_seconds=60, body_seconds=60, reading_seconds=60)

NOT_IN_TIME = "a request was not sent to its end in time"
"""What the log says. What the server answers may be lost where somebody goes on sending."""

GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
PUT = (
    b"PUT /v1/accounts/acct-1 HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n"
    b"Authorization: Bearer " + API_KEYS[0].encode() + b"\r\n\r\n"
)
WEBHOOK = b"POST /stripe/webhooks HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n"


class Wire:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def status(self) -> int:
        """Of the next answer, which has no body or one of known length."""
        async with asyncio.timeout(20):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            for line in head.lower().splitlines():
                if line.startswith("content-length:"):
                    await self._reader.readexactly(int(line.partition(":")[2]))
        return int(head.split()[1])

    async def rest(self) -> bytes:
        """Whatever comes until the server has ended the connection."""
        async with asyncio.timeout(20):
            with suppress(ConnectionError):
                return await self._reader.read()
        return b""

    async def dribble(self, data: bytes) -> None:
        """Send the same again and again, a little each time, until the server has ended the connection."""
        ended = asyncio.create_task(self.rest())
        while not ended.done():
            with suppress(ConnectionError):
                await self.send(data)
            await asyncio.wait([ended], timeout=0.02)
        await ended


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def connections(server: Server) -> int:
    return len(server.server_state.connections)


async def test_a_connection_on_which_nothing_comes_is_ended(starter: Starter) -> None:
    async with serving(starter, SHORT) as server, connected(server) as wire:
        assert (await wire.rest()).startswith(b"HTTP/1.1 408 ")
        await until(lambda: connections(server), lambda left: left == 0)


@pytest.mark.parametrize(
    "begun", [b"GET /", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: "]
)
async def test_headers_that_never_end_end_the_connection(
    starter: Starter, begun: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(starter, SHORT) as server, connected(server) as wire:
        await wire.send(begun)
        await wire.dribble(b"a")
        await until(lambda: connections(server), lambda left: left == 0)
    assert NOT_IN_TIME in "".join(capsys.readouterr())


@pytest.mark.parametrize("silent", [False, True], ids=["dribbled", "silent"])
@pytest.mark.parametrize("head", [PUT, WEBHOOK], ids=["call", "webhook"])
async def test_a_body_that_is_dribbled_or_never_comes_ends_the_connection_and_is_no_error_of_ours(
    starter: Starter, head: bytes, silent: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(starter, SHORT) as server, connected(server) as wire:
        await wire.send(head)
        await (wire.rest() if silent else wire.dribble(b" "))
        await until(lambda: connections(server), lambda left: left == 0)
        seen = await until(
            lambda: starter.metric("referrals_http_request_seconds_count", status="400"), lambda times: times > 0
        )
    assert seen == 1
    assert "unexpected error" not in "".join(capsys.readouterr())


async def test_line_ends_between_requests_keep_no_connection_open(
    starter: Starter, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(starter, SHORT) as server, connected(server) as wire:
        await wire.send(GET)
        assert await wire.status() == 200
        await wire.dribble(b"\r\n")
    assert NOT_IN_TIME in "".join(capsys.readouterr())


async def test_headers_without_end_are_not_kept_to_their_end(
    starter: Starter, capsys: pytest.CaptureFixture[str]
) -> None:
    for begun, piece in ((b"GET /healthz HTTP/1.1\r\n", b"X-A: " + b"a" * 4000 + b"\r\n"), (b"GET /", b"a" * 4000)):
        async with serving(starter, LONG) as server, connected(server) as wire:
            await wire.send(begun)
            await wire.dribble(piece)
        assert "headers without end" in "".join(capsys.readouterr())


async def test_who_takes_no_answer_is_not_waited_for(starter: Starter) -> None:
    async with serving(starter, SHORT) as server:
        with socket.socket() as greedy:
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            greedy.connect(("127.0.0.1", port_of(server)))
            greedy.setblocking(False)
            # More than fits into what the two systems keep between them.
            await asyncio.get_running_loop().sock_sendall(greedy, b"GET /terms HTTP/1.1\r\nHost: a\r\n\r\n" * 600)
            await until(lambda: connections(server), lambda there: there == 1)
            await until(lambda: connections(server), lambda left: left == 0)


async def test_while_some_are_slow_everybody_else_is_served(starter: Starter) -> None:
    async with serving(starter, LONG) as server:
        async with connected(server) as idle, connected(server) as head, connected(server) as body:
            await head.send(b"GET / HTTP/1.1\r\nX-")
            await body.send(PUT)
            for _ in range(3):
                async with connected(server) as wire:
                    await wire.send(GET + GET)
                    assert await wire.status() == await wire.status() == 200
            await idle.send(GET)
            assert await idle.status() == 200, "who took its time is served when it asks"
        await until(lambda: connections(server), lambda left: left == 0)


@pytest.mark.parametrize("bound", [{"connections": 3}, {"connections_of_one": 3}], ids=["all", "one address"])
async def test_connections_are_bounded_and_there_is_room_again_when_one_has_ended(
    starter: Starter, bound: dict[str, int]
) -> None:
    patience = Patience(**({"head_seconds": 60} | bound))
    async with serving(starter, patience) as server:
        async with connected(server) as first, connected(server), connected(server):
            await until(lambda: connections(server), lambda there: there == 3)
            for _ in range(3):
                async with connected(server) as further:
                    assert (await further.rest()).startswith(b"HTTP/1.1 503 ")
            await first.send(GET)
            assert await first.status() == 200
        await until(lambda: connections(server), lambda left: left == 0)
        async with connected(server) as again:
            await again.send(GET)
            assert await again.status() == 200


def test_the_process_may_have_as_many_files_open_as_it_lets_connections_in() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
        assert room_for(200) == 200
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 600, "nothing is changed that is enough"
        assert room_for(1000) == 1000
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1000 + FILES_BESIDE_CONNECTIONS
        if hard != resource.RLIM_INFINITY:
            assert room_for(10 * hard) == hard - FILES_BESIDE_CONNECTIONS, "no more than the system lets it have"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
