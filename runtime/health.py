"""Whether a program without an HTTP side lives and works, over HTTP, for whoever keeps it running."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_PATIENCE = 5.0
"""How many seconds a caller may take to say what it wants."""

_LONGEST = 2048
"""How many bytes of it are read at most."""


@asynccontextmanager
async def health_at(address: str, ready: Callable[[], bool]) -> AsyncIterator[int]:
    """Answer at an address while the block runs: `/healthz` by being there, `/readyz` by what `ready` says.

    It is the program's own loop that answers: one that hangs does not.

    Args:
        address: `host:port`.
        ready: whether it works.

    Yields:
        The port.

    Raises:
        RuntimeError: it cannot listen there.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                asked = await reader.readline()
                writer.write(_answer(asked, ready))
                await writer.drain()
        except (TimeoutError, OSError, ValueError):
            pass
        finally:
            writer.close()

    host, _, port = address.rpartition(":")
    try:
        server = await asyncio.start_server(answer, host.strip("[]"), int(port), limit=_LONGEST)
    except (OSError, ValueError, OverflowError) as error:
        raise RuntimeError(f"cannot answer at {address} (REFERRALS_HEALTH_ADDRESS): {error}") from None
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _answer(asked: bytes, ready: Callable[[], bool]) -> bytes:
    method, _, rest = asked.partition(b" ")
    path = rest.partition(b" ")[0]
    if method not in (b"GET", b"HEAD") or path not in (b"/healthz", b"/readyz"):
        status, said = "404 Not Found", "nothing here\n"
    elif path == b"/healthz":
        status, said = "200 OK", "alive\n"
    elif ready():
        status, said = "200 OK", "ready\n"
    else:
        status, said = "503 Service Unavailable", "not ready\n"
    body = said if method != b"HEAD" else ""
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(said)}\r\nConnection: close\r\n\r\n"
    return (head + body).encode()
