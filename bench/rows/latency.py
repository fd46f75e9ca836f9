"""How long a credit takes: from the webhook's POST until both sides can read their minutes.

Bare: from the second signal until the history says that the step was taken. One at a time, and eight.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import psycopg

from bench.figures import Bound, Measured, Row, measured, percentile
from bench.program import Program, Referral, at_once
from bench.sides import Sides

ALONE = Row(
    "credit_latency_vs_bare", "webhook to both balances, p50", "signal to step taken, p50", "ms", Bound.AT_MOST, 1.4
)
TAIL = Row("credit_latency_p99_vs_p50", "p99 of eight at a time", "p50 of them", "ms", Bound.AT_MOST, 3)

AT_A_TIME = 8


class Watch:
    """Looks again and again which referrals' minutes everybody can read, by a connection of its own."""

    def __init__(self, books: psycopg.AsyncConnection) -> None:
        """Look through `books`."""
        self._books = books
        self._awaited: dict[str, asyncio.Event] = {}

    async def both_can_read(self, referral: Referral) -> None:
        """Wait until both sides' minutes are there."""
        self._awaited[referral.referral_id] = seen = asyncio.Event()
        await seen.wait()

    async def look(self) -> None:
        """Look until cancelled."""
        query = "SELECT referral_id FROM grant_lot WHERE referral_id = ANY(%s) GROUP BY 1 HAVING count(*) = 2"
        while True:
            if self._awaited:
                for (referral_id,) in await (await self._books.execute(query, [list(self._awaited)])).fetchall():
                    self._awaited.pop(referral_id).set()
            await asyncio.sleep(0.001)


async def measure(sides: Sides) -> list[Measured]:
    """Credit one at a time in turn with bare steps, then eight at a time."""
    sizes, program = sides.sizes, sides.program
    alone: list[tuple[float, float]] = []
    tails: list[tuple[float, float]] = []
    async with await psycopg.AsyncConnection.connect(sides.servers.postgres.owner_url, autocommit=True) as books:
        watch = Watch(books)
        looking = asyncio.create_task(watch.look())
        for _ in range(sizes.rounds):
            waiting = await program.waiting_for_payment(sizes.one_by_one)
            handles = await sides.bare.waiting(sizes.one_by_one)
            ours, bare = [], []
            for referral, handle in zip(waiting, handles, strict=True):
                ours.append(await _credit(program, watch, referral))
                began = time.perf_counter()
                await sides.bare.tell(handle)
                await sides.bare.acted(handle)
                bare.append(time.perf_counter() - began)
            alone.append((percentile(ours, 0.5) * 1000, percentile(bare, 0.5) * 1000))
        for _ in range(sizes.rounds):
            waiting = await program.waiting_for_payment(sizes.together)
            seconds = await at_once(AT_A_TIME, waiting, lambda each: _credit(program, watch, each))
            tails.append(_tail(seconds))
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
    return [measured(ALONE, alone), measured(TAIL, tails)]


def _tail(seconds: Sequence[float]) -> tuple[float, float]:
    return percentile(seconds, 0.99) * 1000, percentile(seconds, 0.5) * 1000


async def _credit(program: Program, watch: Watch, referral: Referral) -> float:
    """Let a friend pay; gives how many seconds it took until both had their minutes."""
    began = time.perf_counter()
    seen = asyncio.create_task(watch.both_can_read(referral))
    await program.pay(referral)
    await asyncio.wait_for(seen, 60)
    return time.perf_counter() - began
