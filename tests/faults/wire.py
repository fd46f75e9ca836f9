"""What lies between the programs and their servers: proxies that can cut, and that know what goes through them.

They read the wire as the servers do, so that a blow can fall right after PostgreSQL has committed and before the
program hears of it, or right after Temporal has taken a call and before its answer is passed on. Nothing of the program
is changed for that: it speaks to another port, and that is all.
"""

import asyncio
import re
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

CHUNK = 65536

_CLOSING_SECONDS = 5.0

_DATA, _HEADERS = 0, 1
_END_STREAM = 1
_PREFACE = 24


class Cut(Exception):  # noqa: N818 - meant, no error
    """The connection is to be cut here."""


@dataclass
class Moment:
    """The worst moment of a step, to be waited for on the wire.

    Args:
        program: whose connections are watched.
        pattern: what one of the statements of the transaction has to look like.
        blow: what is done then; the program has not heard of its commit.
        before: whether the blow falls before the commit is passed on to the server.
        passes: whether the program hears of its commit all the same, after the blow.
        wanted: whether this is the moment, asked when the server has committed; one that is not is passed over.
        over: whether nobody waits for it any more; no blow falls then.
    """

    program: str
    pattern: re.Pattern[str]
    blow: Callable[[], Awaitable[None]]
    before: bool = False
    passes: bool = False
    wanted: Callable[[], Awaitable[bool]] | None = None
    over: bool = False
    met: asyncio.Event = field(default_factory=asyncio.Event)

    def is_of(self, program: str, statements: list[str]) -> bool:
        """Whether the transaction of a program is one that is waited for."""
        return program == self.program and any(self.pattern.search(each) for each in statements)


@dataclass
class Call:
    """A call to Temporal whose answer is not to arrive.

    Args:
        program: whose.
        at_least: how many bytes it sends; polls for work are shorter than what tells of work done.
        blow: what is done once the server has answered.
    """

    program: str
    at_least: int
    blow: Callable[[], Awaitable[None]]
    met: asyncio.Event = field(default_factory=asyncio.Event)


class Speaker(Protocol):
    """Reads both directions of one connection, and says what is to be passed on."""

    async def forth(self, data: bytes) -> bytes:
        """What the program sent; raises :class:`Cut` to end it here."""
        ...

    async def back(self, data: bytes) -> bytes:
        """What the server answered; raises :class:`Cut` to end it here."""
        ...


class Wire:
    """A proxy in front of one server."""

    def __init__(self, target: int, owner: Callable[[int], str], speaker: Callable[["Wire", str], Speaker]) -> None:
        """Pass on to a port of this machine.

        Args:
            target: the server's port.
            owner: finds out which program speaks from a port.
            speaker: reads one connection of a program.
        """
        self._target = target
        self._owner = owner
        self._speaker = speaker
        self._open: dict[asyncio.StreamWriter, str] = {}
        self._closed_until: dict[str, float] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.moment: Moment | None = None
        self.call: Call | None = None
        self.seen: Counter[str] = Counter()
        """What went through, by program, so that a run can tell that it was really in between."""

    @property
    def port(self) -> int:
        """Where it listens."""
        if self._server is None:
            raise RuntimeError("the proxy does not listen yet")
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self) -> None:
        """Listen on a free port of loopback."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def close(self) -> None:
        """Cut everything and listen no more."""
        if self._server is not None:
            self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSING_SECONDS)

    def connections(self, program: str) -> int:
        """How many connections a program has."""
        return sum(owner == program for owner in self._open.values())

    def cut(self, program: str | None = None, seconds: float = 0.0) -> int:
        """Cut the connections of a program, or all, and accept none of the program's for a while; how many were cut."""
        if program is not None:
            self._closed_until[program] = time.monotonic() + seconds
        chosen = [writer for writer, owner in self._open.items() if program in (None, owner)]
        for writer in chosen:
            writer.transport.abort()
        return len(chosen)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        source = writer.get_extra_info("peername")[1]
        owner = await asyncio.to_thread(self._owner, source)
        if time.monotonic() < self._closed_until.get(owner, 0.0):
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        if time.monotonic() < self._closed_until.get(owner, 0.0):
            # It was cut meanwhile.
            for each in (writer, server_writer):
                each.transport.abort()
            return
        self._open[writer] = owner
        speaker = self._speaker(self, owner)
        ways = [
            asyncio.create_task(_pump(reader, server_writer, speaker.forth)),
            asyncio.create_task(_pump(server_reader, writer, speaker.back)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            del self._open[writer]
            for each in (writer, server_writer):
                each.transport.abort()


async def _pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, passes: Callable[[bytes], Awaitable[bytes]]
) -> None:
    with suppress(ConnectionError, Cut):
        while data := await source.read(CHUNK):
            if passed := await passes(data):
                sink.write(passed)
                await sink.drain()


class PostgresSpeaker:
    """One connection to PostgreSQL: knows the statements of the transaction under way, and sees its commit."""

    def __init__(self, wire: Wire, program: str) -> None:
        """Watch a connection of a program."""
        self._wire = wire
        self._program = program
        self._buffer = b""
        self._typed = False
        self._prepared: dict[bytes, str] = {}
        self._statements: list[str] = []
        self._held: Moment | None = None
        self._answer = b""

    async def forth(self, data: bytes) -> bytes:
        """Note the statements; a blow that is to fall before the commit falls here."""
        self._buffer += data
        committing = False
        while (message := self._next_message()) is not None:
            statement = self._statement(*message)
            if statement is None:
                continue
            word = statement.lstrip()[:8].upper()
            if word.startswith("COMMIT"):
                committing = True
            elif word.startswith(("BEGIN", "ROLLBACK")) and "TO SAVEPOINT" not in statement.upper():
                self._statements.clear()
            else:
                self._statements.append(statement)
        if committing:
            self._wire.seen[f"{self._program} commits"] += 1
            moment = self._wire.moment
            if moment is not None and moment.is_of(self._program, self._statements):
                self._wire.moment = None
                if moment.before:
                    await _strike(moment)
                self._held = moment
            self._statements.clear()
        return data

    async def back(self, data: bytes) -> bytes:
        """Keep back the answer to a commit that was waited for: the blow falls instead."""
        if self._held is None:
            return data
        self._answer += data
        if not self._answer.endswith(b"Z\0\0\0\x05I"):
            return b""
        moment, self._held = self._held, None
        answer, self._answer = self._answer, b""
        committed = b"COMMIT\0" in answer
        if committed and (moment.wanted is None or await moment.wanted()) and not moment.over:
            await _strike(moment)
            return answer
        # Another one has to be waited for.
        if self._wire.moment is None and not moment.over:
            self._wire.moment = moment
        return answer

    def _next_message(self) -> tuple[bytes, bytes] | None:
        """The next whole message, its type (none of the first ones has one) and its body."""
        head = 5 if self._typed else 4
        if len(self._buffer) < head:
            return None
        kind = self._buffer[:1] if self._typed else b""
        (length,) = struct.unpack("!I", self._buffer[head - 4 : head])
        whole = length + head - 4
        if len(self._buffer) < whole:
            return None
        body, self._buffer = self._buffer[head:whole], self._buffer[whole:]
        # Protocol 3: the startup message; what comes before it asks for encryption.
        if not self._typed and body[:2] == b"\0\x03":
            self._typed = True
        return kind, body

    def _statement(self, kind: bytes, body: bytes) -> str | None:
        """The text of the statement that a message carries out, if it does."""
        match kind:
            case b"Q":
                return body.rstrip(b"\0").decode(errors="replace")
            case b"P":
                name, text, _ = body.split(b"\0", 2)
                self._prepared[name] = text.decode(errors="replace")
                return None
            case b"B":
                _, name, _ = body.split(b"\0", 2)
                return self._prepared.get(name)
            case _:
                return None


class TemporalSpeaker:
    """One HTTP/2 connection to Temporal: sees which call is answered."""

    def __init__(self, wire: Wire, program: str) -> None:
        """Watch a connection of a program."""
        self._wire = wire
        self._program = program
        self._forth = b""
        self._back = b""
        self._begun = False
        self._watched: tuple[int, Call] | None = None

    async def forth(self, data: bytes) -> bytes:
        """Note the call whose answer is not to arrive."""
        self._forth += data
        if not self._begun:
            if len(self._forth) < _PREFACE:
                return data
            self._forth, self._begun = self._forth[_PREFACE:], True
        while (frame := _frame(self._forth)) is not None:
            kind, _, stream, length = frame
            self._forth = self._forth[9 + length :]
            call = self._wire.call
            if kind == _DATA and length:
                self._wire.seen[f"{self._program} calls"] += 1
                if call is not None and call.program == self._program and length >= call.at_least:
                    self._wire.call = None
                    self._watched = (stream, call)
        return data

    async def back(self, data: bytes) -> bytes:
        """Pass on whole frames, up to the answer that is waited for."""
        self._back += data
        passed = b""
        while (frame := _frame(self._back)) is not None:
            kind, flags, stream, length = frame
            answers = kind == _DATA or (kind == _HEADERS and flags & _END_STREAM)
            if answers and self._watched is not None and stream == self._watched[0]:
                call, self._watched = self._watched[1], None
                await _strike(call)
            passed += self._back[: 9 + length]
            self._back = self._back[9 + length :]
        return passed


def _frame(data: bytes) -> tuple[int, int, int, int] | None:
    """The kind, flags, stream and length of the whole frame that the bytes begin with."""
    if len(data) < 9:
        return None
    length = int.from_bytes(data[:3], "big")
    if len(data) < 9 + length:
        return None
    return data[3], data[4], int.from_bytes(data[5:9], "big") & 0x7FFFFFFF, length


async def _strike(moment: Moment | Call) -> None:
    """Let the blow fall, and the connection with it, unless the answer is to be passed on."""
    await moment.blow()
    moment.met.set()
    if not (isinstance(moment, Moment) and moment.passes):
        raise Cut
