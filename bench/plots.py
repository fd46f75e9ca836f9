"""`make bench-plots`: how cost grows with referrals, clicks and events, drawn into `docs/images`."""

import asyncio
import logging
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib
import structlog
import typer
from matplotlib.figure import Figure
from temporalio.client import Client

from bench.bare_side import history_bytes
from bench.program import AT_ONCE, at_once
from bench.rows.clicks import start_a_click
from bench.rows.reads import at_size
from bench.servers import servers
from bench.sides import QUICK, Sides, sides
from devstack.errors import StackError
from runtime.settings import PROJECT
from runtime.temporal import leave
from workflows.client import ReferralRuns
from workflows.messages import PAYMENT, PaymentReported, workflow_id

FOLDER = PROJECT / "docs" / "images"

Curves = Mapping[str, Sequence[tuple[float, float]]]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture.

    Args:
        name: of its file.
        title: what it shows.
        across: what grows, and its unit.
        up: what it costs, and its unit.
        curves: by their names.
        logarithmic: whether what grows does so by powers of ten.
    """

    name: str
    title: str
    across: str
    up: str
    curves: Curves
    logarithmic: bool = False

    def draw(self, folder: Path) -> None:
        """Write the picture, an SVG of some kilobytes."""
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, points in self.curves.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        if self.logarithmic:
            axes.set_xscale("log")
        # With room above what hardly changes: the default would end just there.
        axes.set_ylim(0, 1.2 * axes.dataLim.ymax)
        axes.set(title=self.title, xlabel=self.across, ylabel=self.up)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(folder / f"{self.name}.svg", metadata={"Date": None})


@app.command()
def plots(
    folder: Annotated[Path, typer.Option(help="Where the pictures go.")] = FOLDER,
    largest: Annotated[int, typer.Option(min=10_000, help="Referrals in the largest ledger.")] = 1_000_000,
    clicks: Annotated[int, typer.Option(min=100, help="Clicks that wait.")] = 20_000,
) -> None:
    """Measure how cost grows, on servers of its own, and draw it."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    matplotlib.rcParams.update({"svg.hashsalt": "referrals", "font.size": 10})
    try:
        for plot in asyncio.run(_measure(largest, clicks)):
            plot.draw(folder)
    except StackError as error:
        _say(str(error))
        leave(1)
    leave(0)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)  # noqa: T201


async def _measure(largest: int, clicks: int) -> list[Plot]:
    with servers() as running:
        async with sides(running, QUICK, _say) as both:
            return [await _memory(both, clicks), await _history(both), await _ledger(both, largest)]


async def _memory(sides: Sides, clicks: int) -> Plot:
    """The worker's memory, while more and more clicks wait."""
    runs = ReferralRuns(sides.client, "referrals")
    points = [(0.0, sides.worker.memory / 1e6)]
    for step in range(1, 6):
        _say(f"{step * clicks // 5} clicks wait")
        await at_once(AT_ONCE, range(clicks // 5), lambda _: start_a_click(runs))
        await asyncio.sleep(1)
        points.append((step * clicks / 5, sides.worker.memory / 1e6))
    return Plot(
        "cost-of-waiting-clicks",
        "Clicks that wait cost the worker nothing",
        "clicks that wait for a signup",
        "worker, MB",
        {"resident memory": points},
    )


async def _history(sides: Sides) -> Plot:
    """The histories of both sides, while a payment is told again and again."""
    program, client = sides.program, sides.client
    waiting = await program.waiting_for_payment(4)
    await at_once(4, waiting, program.pay)
    await program.reach(waiting, "credited")
    handles = await sides.bare.waiting(4, told=2)
    ids = [workflow_id(referral.referral_id) for referral in waiting]
    bare_ids = [handle.id for handle in handles]
    curves: dict[str, list[tuple[float, float]]] = {"a referral, credited": [], "a bare workflow, step taken": []}
    for told in range(0, 41, 8):
        for name, runs in zip(curves, (ids, bare_ids), strict=True):
            sizes = await history_bytes(client, runs)
            curves[name].append((told, sum(sizes) / len(sizes) / 1000))
        for _ in range(8):
            await at_once(4, ids, lambda whose: _tell_again(client, whose))
            await at_once(4, handles, sides.bare.tell)
            for whose in [*ids, *bare_ids]:
                await _heard(client, whose)
    return Plot(
        "cost-of-events",
        "Each event that a run is told of adds to its history",
        "events told after the credit",
        "history, KB",
        curves,
    )


async def _tell_again(client: Client, whose: str) -> None:
    """Tell a run of a payment once more, as an event does that Stripe sends again."""
    event = PaymentReported(f"evt_{secrets.token_hex(12)}")
    await client.get_workflow_handle(whose).signal(PAYMENT, event)


async def _heard(client: Client, whose: str) -> None:
    """Wait until a run has heard of everything that it was told."""
    handle = client.get_workflow_handle(whose)
    # Nobody tells when a run has nothing more to do: its description is asked for again.
    while (await handle.describe()).raw_description.HasField("pending_workflow_task"):  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def _ledger(sides: Sides, largest: int) -> Plot:
    """How long what members and their backend ask for takes, while the ledger grows."""
    curves: dict[str, list[tuple[float, float]]] = {}
    referrals = 1000
    while referrals <= largest:
        _say(f"a ledger of {referrals:,} referrals")
        for name, milliseconds in (await at_size(sides, referrals)).items():
            curves.setdefault(name, []).append((referrals, milliseconds))
        referrals *= 10
    return Plot(
        "cost-of-referrals",
        "A tenth of all referrals are one member's, who asks",
        "referrals in the ledger",
        "median, ms",
        curves,
        logarithmic=True,
    )


if __name__ == "__main__":
    app()
