"""`make faults`: the whole program under load and under fire, and the tally afterwards."""

import argparse
import asyncio
import json
import random
import signal
import sys
from pathlib import Path

from tests.faults.run import Outcome, Run, carry_out
from tests.faults.schedule import ALL, SHORT

SHORT_STEPS = 2 * len(SHORT) + 3
"""How many steps of the load a short run has: enough for each of its faults."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long the load lasts [default: a short run]")
    parser.add_argument("--seed", type=int, help="repeats the schedule of another run")
    parser.add_argument("--pace", type=float, default=0.8, help="how many seconds lie between two steps of the load")
    parser.add_argument("--keep", type=Path, help="where the record and the logs are left")
    parser.add_argument("--plan", action="store_true", help="only say what would happen when")
    parser.add_argument("--no-mount", action="store_true", help="fill the disk without a file system of its own")
    return parser.parse_args()


def main() -> int:
    """Run it; the last line is one of JSON.

    Returns:
        The exit status: 0 only if nothing was lost, and nothing happened twice.
    """
    asked = _arguments()
    seed = random.SystemRandom().randrange(1_000_000) if asked.seed is None else asked.seed
    short = asked.minutes is None
    seconds = None if asked.minutes is None else asked.minutes * 60
    run = Run(
        seed=seed,
        steps=SHORT_STEPS if seconds is None else max(int(seconds / asked.pace), 1),
        seconds_a_step=asked.pace,
        faults=SHORT if short else ALL,
        every=2,
        cycle_seconds=12.0 if short else 30.0,
        settle_seconds=180.0 if short else 300.0,
        at_most_seconds=seconds,
        keep=asked.keep,
        may_mount=not asked.no_mount,
    )
    if asked.plan:
        for step in run.plan():
            sys.stdout.write(f"{step.number:5} {step.kind:45} {step.fault.name if step.fault else ''}\n")
        return 0
    outcome = asyncio.run(_until_told(run))
    if outcome is None:
        print("make faults: ended before its time", file=sys.stderr)
        return 130
    print(json.dumps(outcome.document()), flush=True)
    return 0 if outcome.holds else 1


async def _until_told(run: Run) -> Outcome | None:
    """Carry it out; SIGINT and SIGTERM end it, and nothing is left behind then either."""
    carrying = asyncio.ensure_future(carry_out(run, lambda line: print(line, flush=True)))
    told = False

    def tell() -> None:
        nonlocal told
        if not told:
            told = True
            carrying.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, tell)
    try:
        return await carrying
    except asyncio.CancelledError:
        return None


if __name__ == "__main__":
    sys.exit(main())
