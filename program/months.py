"""Calendar months, UTC, by which a member's dashboard looks back."""

from datetime import date, datetime

MONTHS_SHOWN = 6
"""How many months a dashboard looks back over, this one included."""


def last_months(now: datetime, number: int = MONTHS_SHOWN) -> tuple[date, ...]:
    """The first days of the last months, the oldest first; the last one is the month that `now` (UTC) is in."""
    this = now.year * 12 + now.month - 1
    return tuple(date(month // 12, month % 12 + 1, 1) for month in range(this - number + 1, this + 1))
