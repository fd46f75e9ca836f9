"""Clicks: redirects a second, next to starts a second by a client that does nothing else."""

import secrets
import time
from datetime import UTC, datetime

from bench.figures import Bound, Measured, Row, measured
from bench.program import AT_ONCE, at_once
from bench.sides import Sides
from program.referral import AttributionWindow
from workflows.client import ReferralRuns
from workflows.messages import ReferralStart

VS_BARE = Row("click_vs_bare_start", "redirects", "bare starts", "a second", Bound.AT_LEAST, 0.9)
VS_DELAYED = Row("click_vs_own_start", "redirects", "starts of the same run, by a client alone", "a second")


async def measure(sides: Sides) -> list[Measured]:
    """Click, start bare workflows, and start what a click starts, in turn."""
    number, program = sides.sizes.clicks, sides.program
    runs = ReferralRuns(sides.client, "referrals")
    rates: list[tuple[float, float, float]] = []
    for _ in range(sides.sizes.rounds):
        began = time.perf_counter()
        await at_once(AT_ONCE, program.referrals(number), program.click)
        clicked = time.perf_counter()
        await at_once(AT_ONCE, range(number), sides.bare.start)
        started = time.perf_counter()
        await at_once(AT_ONCE, range(number), lambda _: start_a_click(runs))
        ended = time.perf_counter()
        rates.append((number / (clicked - began), number / (started - clicked), number / (ended - started)))
        await sides.bare.settle()
    return [
        measured(VS_BARE, [(ours, bare) for ours, bare, _ in rates]),
        measured(VS_DELAYED, [(ours, own) for ours, _, own in rates]),
    ]


async def start_a_click(runs: ReferralRuns) -> None:
    """Start what a click starts."""
    now = datetime.now(UTC).replace(microsecond=0)
    start = ReferralStart(secrets.token_hex(12), "acct-nobody", now, AttributionWindow(now).lapses_at)
    await runs.clicked(start, now, "email")
