"""From measurements to ratios: medians, percentiles, bounds. Pure."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

ROUNDS = 5
"""How often each side is measured at least: a median of fewer is one bad moment away from another."""


class Bound(Enum):
    """On which side of a figure is what has to hold."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, slots=True)
class Row:
    """One ratio of the table.

    Args:
        name: what it is called.
        ours: what is measured of the program.
        other: what it is divided by.
        unit: of both.
        bound: whether the ratio has to be great or small; none where it is only told.
        limit: how great, or how small.
    """

    name: str
    ours: str
    other: str
    unit: str
    bound: Bound | None = None
    limit: float = math.nan

    def holds(self, ratio: float) -> bool:
        """Whether a ratio is as it must be."""
        if self.bound is None:
            return True
        return ratio >= self.limit if self.bound is Bound.AT_LEAST else ratio <= self.limit

    @property
    def required(self) -> str:
        """The bound in words; empty where there is none."""
        return f"{self.bound.value} {self.limit:g}" if self.bound else ""


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out for a row: the median of each side and of the rounds' quotients, and how far those were apart."""

    row: Row
    ours: float
    other: float
    ratio: float
    least: float
    most: float
    rounds: int

    @property
    def holds(self) -> bool:
        """Whether the ratio is as it must be."""
        return self.row.holds(self.ratio)


def percentile(samples: Sequence[float], share: float) -> float:
    """The value that this share of the samples, from 0 to 1, does not exceed: one of them, none in between.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("a percentile of nothing")
    return sorted(samples)[max(math.ceil(share * len(samples)), 1) - 1]


def measured(row: Row, rounds: Iterable[tuple[float, float]]) -> Measured:
    """Compare both sides of every round with each other, and take the median of that.

    A machine that grows slow in the middle of it is slow for both sides of a round: their quotient stays.

    Args:
        row: what was measured.
        rounds: the two sides' values in each round.

    Raises:
        ValueError: too few rounds, or a side that measured nothing.
    """
    pairs = list(rounds)
    if len(pairs) < ROUNDS:
        raise ValueError(f"{row.name}: {len(pairs)} rounds are too few for a median")
    if any(not math.isfinite(value) or value <= 0 for pair in pairs for value in pair):
        raise ValueError(f"{row.name}: a side measured nothing")
    quotients = [ours / other for ours, other in pairs]
    return Measured(
        row,
        statistics.median(ours for ours, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(quotients),
        min(quotients),
        max(quotients),
        len(pairs),
    )


def table(results: Iterable[Measured]) -> str:
    """All figures with both sides' own numbers, for people."""
    lines = [("ratio", "measured", "rounds from-to", "must be", "", "ours", "divided by")]
    for each in results:
        row = each.row
        lines.append(
            (
                row.name,
                _short(each.ratio),
                f"{_short(each.least)}-{_short(each.most)}",
                row.required,
                "" if row.bound is None else "holds" if each.holds else "DOES NOT HOLD",
                f"{_short(each.ours)} {row.unit} ({row.ours})",
                f"{_short(each.other)} {row.unit} ({row.other})",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def last_line(results: Iterable[Measured]) -> str:
    """All ratios as one line of JSON, for programs."""
    return json.dumps({"ratios": {each.row.name: round(each.ratio, 4) for each in results}})


def _short(value: float) -> str:
    """Three digits that count, however great the value is."""
    if value >= 1000:
        return f"{value:.0f}"
    return f"{value:#.3g}"
