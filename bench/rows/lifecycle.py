"""A referral from the click to the credit: how many a second, and what one costs the worker and the history.

Bare: as many workflows from the start to the wait for the timer. On DBOS: the same referrals, by the same calls.
"""

from bench.bare_side import history_bytes
from bench.figures import Bound, Measured, Row, measured
from bench.sides import Sides
from workflows.messages import workflow_id

VS_BARE = Row("lifecycle_vs_bare", "click to credited", "bare workflows", "a second", Bound.AT_LEAST, 1.0)
VS_DBOS = Row("lifecycle_vs_dbos", "click to credited", "the same on DBOS", "a second", Bound.AT_LEAST, 1.5)
CPU = Row("worker_cpu_vs_bare", "worker a referral", "bare worker a workflow", "ms of CPU", Bound.AT_MOST, 1.6)
BYTES = Row("history_bytes_vs_bare", "history when credited", "bare, step taken", "bytes", Bound.AT_MOST, 1.5)

SAMPLES = 20
"""Histories that are looked at a round."""


async def measure(sides: Sides) -> list[Measured]:
    """Run rounds of referrals on each side in turn."""
    number = sides.sizes.lifecycles
    rates: list[tuple[float, float, float]] = []
    computed: list[tuple[float, float]] = []
    sizes: list[tuple[float, float]] = []
    async with sides.on_dbos() as other:
        await other.lifecycles(8)
        for _ in range(sides.sizes.rounds):
            own, bare = sides.worker.cpu_seconds, sides.bare.worker.cpu_seconds
            seconds = await sides.program.lifecycles(number)
            own = sides.worker.cpu_seconds - own
            bare_seconds = await sides.bare.lifecycles(number)
            bare = sides.bare.worker.cpu_seconds - bare
            rates.append((number / seconds, number / bare_seconds, number / await other.lifecycles(number)))
            computed.append((own / number * 1000, bare / number * 1000))
            sizes.append(await _histories(sides))
    return [
        measured(VS_BARE, [(ours, bare) for ours, bare, _ in rates]),
        measured(VS_DBOS, [(ours, other) for ours, _, other in rates]),
        measured(CPU, computed),
        measured(BYTES, sizes),
    ]


async def _histories(sides: Sides) -> tuple[float, float]:
    """How long the histories of the last referrals, and of the last bare workflows, are on average."""
    ours = await history_bytes(sides.client, [workflow_id(each) for each in sides.program.last[:SAMPLES]])
    bare = await history_bytes(sides.client, sides.bare.last[:SAMPLES])
    return sum(ours) / len(ours), sum(bare) / len(bare)
