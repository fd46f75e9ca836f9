"""A client that costs little: HTTP/1.1 on connections that are kept.

What calls the program runs on the same machine, and takes from it what it needs itself: a client of comfort would cost
as much as the answer does.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any


class UnexpectedAnswerError(Exception):
    """The program answered otherwise than it must; what is measured then is something else."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


KEPT_SECONDS = 3.0
"""How long a connection may wait for its next request; the server closes it after five seconds."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Wire:
    """Connections to one server; as many are opened as there are requests at once."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """Connect on first use."""
        self._host, self._port = host, port
        self._idle: list[tuple[float, Streams]] = []

    async def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """Send a request, and wait for the answer.

        Raises:
            ConnectionError: the server cannot be reached, or went away in the middle.
        """
        async with self._connection() as (reader, writer):
            lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                status = int(head[0].split(" ", 2)[1])
                found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
                return Answer(status, found, await reader.readexactly(int(found.get("content-length", "0"))))
            except asyncio.IncompleteReadError as error:
                raise ConnectionError(f"{method} {path}: no whole answer came back") from error

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Streams]:
        streams = self._kept() or await asyncio.open_connection(self._host, self._port)
        try:
            yield streams
        except BaseException:
            streams[1].close()
            raise
        self._idle.append((time.monotonic(), streams))

    def _kept(self) -> Streams | None:
        while self._idle:
            since, streams = self._idle.pop()
            if time.monotonic() - since < KEPT_SECONDS:
                return streams
            streams[1].close()
        return None

    async def close(self) -> None:
        """Close all connections."""
        while self._idle:
            self._idle.pop()[1][1].close()
