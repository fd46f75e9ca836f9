"""Waiting for what others do, and telling meanwhile what keeps it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

Answer = TypeVar("Answer")

LOOK = timedelta(seconds=5)
"""How often it is looked why something does not come."""


class NoAnswerError(Exception):
    """What was waited for has not come; the message says what keeps it, as far as anybody knows."""


async def waited_for(
    coming: Awaitable[Answer],
    problem: Callable[[], Awaitable[str | None]],
    say: Callable[[str], None],
    *,
    look: timedelta = LOOK,
    patience: timedelta | None = None,
) -> Answer:
    """Wait for something.

    Args:
        coming: what is waited for; dropped when nobody waits any more.
        problem: finds what keeps it.
        say: hears that, once for each thing.
        look: how often that is looked for.
        patience: how long at most; without it, for as long as it takes.

    Raises:
        NoAnswerError: it did not come within `patience`.
    """
    ending = asyncio.ensure_future(coming)
    loop = asyncio.get_running_loop()
    until = None if patience is None else loop.time() + patience.total_seconds()
    said: str | None = None
    try:
        while True:
            left = look.total_seconds() if until is None else min(look.total_seconds(), until - loop.time())
            if (await asyncio.wait([ending], timeout=max(left, 0)))[0]:
                return await ending
            found = await problem()
            if until is not None and loop.time() >= until:
                raise NoAnswerError(found or "nothing is known to keep it")
            if found not in (None, said):
                say(f"still waiting: {found}")
            said = found
    finally:
        ending.cancel()
        ending.add_done_callback(_dropped)


def _dropped(ending: "asyncio.Future[Answer]") -> None:
    """However it ends that nobody waits for any more, nobody is told of it."""
    if not ending.cancelled():
        ending.exception()
