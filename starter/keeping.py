"""Stripe's events that concern no run are stored together: what comes while a journey is under way shares the next."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from billing.facts import EventFacts
from ledger import facts
from ledger.database import Database
from program.identity import IdentityHash
from starter.problems import database_is_away

TOGETHER = 64
"""Events in one transaction, at most."""

SLOW_SECONDS = 0.05
"""A journey that takes longer is waited for no more: the next one sets out meanwhile."""

JOURNEYS = 4
"""Under way at once, at most."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An event, by what it takes turns with others, and who waits to hear whether it was stored."""

    event: EventFacts
    turns: frozenset[str]
    answer: asyncio.Future[bool]


class Keeping:
    """Stores events for whoever asks, several in one transaction where several ask at once.

    Nobody waits for company: with nothing under way, an event goes at once with those that have arrived like itself.
    And nobody waits for a stranger's lock, or suffers by a stranger's error.
    """

    def __init__(self, database: Database, hashes: IdentityHash, *, lone: bool = False) -> None:
        """Store into `database`.

        Args:
            database: the ledger's.
            hashes: for what outlives an account.
            lone: whether an event that comes alone is stored as well. It has another road, which it takes in any case
                if it concerns a run: in a quiet hour, where each is alone, it would be asked twice whether it does.
        """
        self._database = database
        self._hashes = hashes
        self._lone = lone
        self._waiting: deque[_Waiting] = deque()
        self._journeys: dict[asyncio.Task[None], list[_Waiting]] = {}
        self._awaited: asyncio.Task[None] | None = None

    async def keep(self, event: EventFacts) -> bool:
        """Store an event that concerns no run.

        Returns:
            Whether it is stored, and committed, and nobody has to be told; if not, nothing was, and it is for
            `ledger.facts.apply_event`.

        Raises:
            SQLAlchemyError: the database refused this very event, or is away.
        """
        turns = facts.turns(event)
        if not turns:
            return False
        waiting = _Waiting(event, turns, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._set_out()
        return await waiting.answer

    def _set_out(self) -> None:
        if self._awaited or len(self._journeys) == JOURNEYS or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        # A task of its own: whoever asked may go away, and the others still wait.
        self._awaited = journey = loop.create_task(self._journey())
        self._journeys[journey] = []
        journey.add_done_callback(self._back)
        loop.call_later(SLOW_SECONDS, self._go_on, journey)

    def _go_on(self, journey: asyncio.Task[None]) -> None:
        """Wait no more for a journey that is slow."""
        if self._awaited is journey:
            self._awaited = None
            self._set_out()

    def _back(self, journey: asyncio.Task[None]) -> None:
        together = self._journeys.pop(journey, [])
        for each in together:
            each.answer.cancel()  # who has no answer by now gets none: the program ends
        if self._awaited is journey:
            self._awaited = None
        if together:  # else all who wait have to take turns with a slow one
            self._set_out()

    async def _journey(self) -> None:
        # What was read from the network together comes one after the other, each two turns of the loop after its bytes.
        here = 0
        while here < len(self._waiting) < TOGETHER:
            here = len(self._waiting)
            for _ in range(2):
                await asyncio.sleep(0)
        together = self._next()
        journey = asyncio.current_task()
        if journey is None:
            return
        if not together:
            # Now, and not only when it is back: whoever comes in between sets out as if there had been no journey.
            del self._journeys[journey]
            self._awaited = None if self._awaited is journey else self._awaited
            return
        alone = len(together) == len(self._journeys) == 1
        self._journeys[journey] = together
        if alone and not self._lone:
            together[0].answer.set_result(False)
        else:
            await self._store(together)

    def _next(self) -> list[_Waiting]:
        """Those who go together now: the first to come, but whoever has to take turns with one before it waits."""
        together: list[_Waiting] = []
        later: list[_Waiting] = []
        taken = {turn for under_way in self._journeys.values() for each in under_way for turn in each.turns}
        while self._waiting and len(together) < TOGETHER:
            each = self._waiting.popleft()
            if each.answer.done():  # it went away
                continue
            (together if taken.isdisjoint(each.turns) else later).append(each)
            taken |= each.turns
        self._waiting.extendleft(reversed(later))
        return together

    async def _store(self, together: Sequence[_Waiting]) -> None:
        try:
            async with self._database.statement() as statement:
                kept = await facts.keep(statement, [each.event for each in together], self._hashes)
        except Exception as error:
            if len(together) > 1 and not database_is_away(error):
                # One of them is refused, and it is found by halving: the others have nothing to do with it.
                middle = len(together) // 2
                await self._store(together[:middle])
                await self._store(together[middle:])
                return
            for each in together:
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        if kept:
            log.info("events kept", event_ids=sorted(kept))
        for each in together:
            if not each.answer.done():
                each.answer.set_result(each.event.event_id in kept)
