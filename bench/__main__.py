"""`make bench`: measure everything in one run, and say how it compares. `QUICK=1` measures less of everything."""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated

import structlog
import typer

from bench.figures import Measured, last_line, table
from bench.rows import clicks, latency, lifecycle, raw_rows, reads, waiting, webhooks
from bench.servers import servers
from bench.sides import FULL, QUICK, Sides, Sizes, sides
from devstack.errors import StackError
from runtime.temporal import leave

Group = Callable[[Sides], Awaitable[list[Measured]]]

GROUPS: Mapping[str, Group] = {
    "idle": waiting.measure_clicks,
    "lifecycle": lifecycle.measure,
    "latency": latency.measure,
    "clicks": clicks.measure,
    "webhooks": webhooks.measure,
    "wake": waiting.measure_wake,
    "raw": raw_rows.measure,
    "reads": reads.measure,
}
"""In the order in which they are measured: memory first, while the worker has hardly done anything."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)  # noqa: T201


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Less of everything, in under three minutes.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(GROUPS)}: measure only these.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A bound that does not hold is a failure.")] = False,
) -> None:
    """Measure the program next to its engine, another engine and PostgreSQL alone, on servers of its own.

    What is going on is told on standard error; the table, and last the ratios as one line of JSON, on standard output.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    unknown = sorted(set(only or ()) - set(GROUPS))
    if unknown:
        raise typer.BadParameter(f"of {', '.join(GROUPS)} none is called {', '.join(unknown)}", param_hint="--only")
    try:
        results = asyncio.run(_run(QUICK if quick else FULL, only or list(GROUPS)))
    except StackError as error:
        _say(str(error))
        leave(1)
    print(table(results))  # noqa: T201
    print(last_line(results))  # noqa: T201
    leave(1 if strict and not all(each.holds for each in results) else 0)


async def _run(sizes: Sizes, names: list[str]) -> list[Measured]:
    results: list[Measured] = []
    began = time.monotonic()
    _say("starting PostgreSQL and Temporal")
    with servers() as running:
        async with sides(running, sizes, _say) as both:
            for name in names:
                _say(f"{time.monotonic() - began:4.0f} s  measuring {name}")
                found = await GROUPS[name](both)
                # At once, for the next group may fail, and this one took its time.
                _say(table(found))
                results += found
    _say(f"{time.monotonic() - began:4.0f} s  done")
    return results


if __name__ == "__main__":
    app()
