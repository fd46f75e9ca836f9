"""What waits: memory that clicks take from the worker, and a crowd that wakes when the worker has been started anew."""

import asyncio
import time

from bench.bare_side import TASKS
from bench.figures import ROUNDS, Bound, Measured, Row, measured
from bench.program import AT_ONCE, Referral, at_once, until
from bench.rows.clicks import start_a_click
from bench.servers import counter
from bench.sides import Sides
from program.referral import Role
from workflows.client import ReferralRuns
from workflows.messages import CycleMoved

IDLE = Row("idle_click_worker_rss", "worker with clicks that wait", "worker with none", "MB", Bound.AT_MOST, 1.02)
WAKE = Row("wake_2k_vs_bare", "referrals woken by a signal", "bare workflows", "seconds", Bound.AT_MOST, 1.2)


async def measure_clicks(sides: Sides) -> list[Measured]:
    """Look at the memory of a worker that has just been started, and again when so many clicks wait."""
    sides.restart_worker()
    await sides.program.lifecycles(AT_ONCE)
    before = await _memory(sides)
    runs = ReferralRuns(sides.client, "referrals")
    await at_once(AT_ONCE, range(sides.sizes.waiting_clicks), lambda _: start_a_click(runs))
    after = await _memory(sides)
    return [measured(IDLE, zip(after, before, strict=True))]


async def _memory(sides: Sides) -> list[float]:
    seen = []
    for _ in range(ROUNDS):
        await asyncio.sleep(0.5)
        seen.append(sides.worker.memory / 1e6)
    return seen


async def measure_wake(sides: Sides) -> list[Measured]:
    """Stop both workers, signal all that wait, and see how long each worker takes to have gone through them.

    A signal that changes nothing can be sent every round; the run is brought back to memory, hears of it, and waits on.
    The time until a program has been loaded is not counted: it is Python's.
    """
    referrals = await sides.program.waiting_for_payment(sides.sizes.woken)
    handles = await sides.bare.waiting(sides.sizes.woken, told=2)
    runs = ReferralRuns(sides.client, "referrals")

    async def wake(referral: Referral) -> None:
        await runs.cycle_moved(referral.referral_id, CycleMoved(Role.REFERRER, referral.friend.created_at))

    rounds: list[tuple[float, float]] = []
    for _ in range(sides.sizes.rounds):
        sides.worker.stop()
        await at_once(AT_ONCE, referrals, wake)
        process = sides.servers.start_worker(wait=False)
        ours = await _gone_through(sides.servers.configuration.metrics_port, len(referrals), "ReferralWorkflow")
        sides.worker = process
        sides.bare.worker.stop()
        await at_once(AT_ONCE, handles, sides.bare.tell)
        sides.bare.start_worker(wait=False)
        rounds.append((ours, await _gone_through(sides.bare.port, len(handles), "Bare")))
    return [measured(WAKE, rounds)]


async def _gone_through(port: int, number: int, workflow: str) -> float:
    """How long a worker takes from its start, once it has been loaded, until it has carried out so many tasks."""
    await until(lambda: counter(port, "temporal_num_pollers") > 0, "the worker is loaded", often=0.005)
    began = time.perf_counter()
    await until(lambda: counter(port, TASKS, workflow_type=workflow) >= number, "all have been woken", often=0.02)
    return time.perf_counter() - began
