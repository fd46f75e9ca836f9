"""A referral from the click to the credit: how many a second, and what one costs the worker and the history.

Bare: as many workflows from the start to the wait for the timer. On DBOS: the same referrals, by the same calls.
"""

import os
from collections.abc import Awaitable

import psutil

from bench.bare_side import history_bytes
from bench.figures import Bound, Measured, Row, measured
from bench.sides import Sides
from workflows.messages import workflow_id

VS_BARE = Row("lifecycle_vs_bare", "click to credited", "bare workflows", "a second", Bound.AT_LEAST, 1.0)
VS_DBOS = Row("lifecycle_vs_dbos", "click to credited", "the same on DBOS", "a second", Bound.AT_LEAST, 1.5)
CPU = Row("worker_cpu_vs_bare", "worker a referral", "bare worker a workflow", "ms of CPU", Bound.AT_MOST, 1.6)
BYTES = Row("history_bytes_vs_bare", "history when credited", "bare, step taken", "bytes", Bound.AT_MOST, 1.5)

ALL_CPU = Row("all_cpu_vs_bare", "everything a referral", "everything a bare workflow", "ms of CPU")
ALL_CPU_DBOS = Row("all_cpu_vs_dbos", "everything a referral", "everything a referral on DBOS", "ms of CPU")
SERVER = Row("temporal_cpu_vs_bare", "Temporal a referral", "Temporal a bare workflow", "ms of CPU")

SAMPLES = 20
"""Histories that are looked at a round."""


async def measure(sides: Sides) -> list[Measured]:
    """Run rounds of referrals on each side in turn."""
    number = sides.sizes.lifecycles
    rates: list[tuple[float, float, float]] = []
    workers: list[tuple[float, float]] = []
    servers: list[tuple[float, float]] = []
    all_cpu: list[tuple[float, float, float]] = []
    sizes: list[tuple[float, float]] = []

    async def turn(lifecycles: Awaitable[float]) -> tuple[float, float, float]:
        """How many a second, and the CPU of all, and of Temporal, in milliseconds for one."""
        computed, temporal = _computed(), sides.servers.temporal.cpu_seconds
        rate = number / await lifecycles
        each = 1000 / number
        return rate, (_computed() - computed) * each, (sides.servers.temporal.cpu_seconds - temporal) * each

    async with sides.on_dbos() as other:
        await other.lifecycles(8)
        for _ in range(sides.sizes.rounds):
            own, bare = sides.worker.cpu_seconds, sides.bare.worker.cpu_seconds
            ours = await turn(sides.program.lifecycles(number))
            own = sides.worker.cpu_seconds - own
            theirs = await turn(sides.bare.lifecycles(number))
            bare = sides.bare.worker.cpu_seconds - bare
            on_dbos = await turn(other.lifecycles(number))
            rates.append((ours[0], theirs[0], on_dbos[0]))
            all_cpu.append((ours[1], theirs[1], on_dbos[1]))
            servers.append((ours[2], theirs[2]))
            workers.append((own / number * 1000, bare / number * 1000))
            sizes.append(await _histories(sides))
    return [
        measured(VS_BARE, [(ours, bare) for ours, bare, _ in rates]),
        measured(VS_DBOS, [(ours, other) for ours, _, other in rates]),
        measured(CPU, workers),
        measured(BYTES, sizes),
        measured(ALL_CPU, [(ours, bare) for ours, bare, _ in all_cpu]),
        measured(ALL_CPU_DBOS, [(ours, other) for ours, _, other in all_cpu]),
        measured(SERVER, servers),
    ]


def _computed() -> float:
    """How long all processors of the machine have computed, in seconds, but for this process, which only asks."""
    all_of_them, own = psutil.cpu_times(), os.times()
    return float(all_of_them.user + all_of_them.system - own.user - own.system)


async def _histories(sides: Sides) -> tuple[float, float]:
    """How long the histories of the last referrals, and of the last bare workflows, are on average."""
    ours = await history_bytes(sides.client, [workflow_id(each) for each in sides.program.last[:SAMPLES]])
    bare = await history_bytes(sides.client, sides.bare.last[:SAMPLES])
    return sum(ours) / len(ours), sum(bare) / len(bare)
