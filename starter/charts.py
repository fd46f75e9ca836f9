"""Where the columns of a chart stand: whole numbers, an axis with round steps. Templates draw them."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 360
"""Of the drawing, in its own units; it is drawn as wide as there is room."""

HEIGHT = 200

_TOP, _BOTTOM, _RIGHT = 10, 26, 2
_DIGIT = 7.6
"""The width of a digit of the axis."""

_STEPS = 4
"""How many steps an axis has at most."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of the axis: the whole number that it stands for, and where it runs."""

    value: int
    y: float


@dataclass(frozen=True, slots=True)
class Column:
    """One column, standing on the base line."""

    series: int
    value: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Group:
    """The columns that belong to one place on the base line, and the middle of that place."""

    label: str
    middle: float
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as it is drawn, in units of `width` and `height`."""

    width: float
    height: float
    left: float
    ticks: tuple[Tick, ...]
    groups: tuple[Group, ...]

    @property
    def marks(self) -> float:
        """Where the numbers of the axis end."""
        return round(self.left - 8, 1)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to see but the axis."""
        return not any(column.value for group in self.groups for column in group.columns)


def axis(highest: int) -> tuple[int, ...]:
    """The numbers of an axis from 0 up to at least `highest`: whole, evenly spaced, round (1, 2 or 5, and zeros)."""
    size = 1
    while True:
        for step in (size, 2 * size, 5 * size):
            if highest <= step * _STEPS:
                return tuple(range(0, max(highest + step - 1, step) // step * step + 1, step))
        size *= 10


def columns(labels: Sequence[str], series: Sequence[Sequence[int]]) -> Chart:
    """Columns side by side for each label, one of each series.

    Args:
        labels: of the places on the base line.
        series: for each series its value at each label; none below 0.

    Raises:
        ValueError: a series has not as many values as there are labels, or one below 0.
    """
    if any(len(values) != len(labels) for values in series):
        raise ValueError("each series needs one value for each label")
    if any(value < 0 for values in series for value in values):
        raise ValueError("a column cannot reach below 0")
    marks = axis(max((value for values in series for value in values), default=0))
    top, base = marks[-1], HEIGHT - _BOTTOM
    # Room for the longest number, its separators included.
    left = round(len(f"{top:,}") * _DIGIT + 10, 1)

    def y(value: int) -> float:
        return round(base - (base - _TOP) * value / top, 1)

    place = (WIDTH - _RIGHT - left) / max(len(labels), 1)
    width = place * 0.64 / max(len(series), 1)
    groups = []
    for index, label in enumerate(labels):
        middle = left + place * (index + 0.5)
        first = middle - width * len(series) / 2
        drawn = tuple(
            Column(
                number,
                values[index],
                round(first + width * number, 1),
                y(values[index]),
                round(width * 0.88, 1),
                round(base - y(values[index]), 1),
            )
            for number, values in enumerate(series)
        )
        groups.append(Group(label, round(middle, 1), drawn))
    return Chart(WIDTH, HEIGHT, left, tuple(Tick(mark, y(mark)) for mark in marks), tuple(groups))
