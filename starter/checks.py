"""Checks of what comes in that need to know the time."""

from datetime import datetime, timedelta

from starter.problems import ProblemError

_CLOCKS_DIFFER = timedelta(minutes=5)


def not_from_the_future(created_at: datetime, now: datetime) -> None:
    """Refuse an account that is yet to be made.

    Raises:
        ProblemError: 422.
    """
    if created_at > now + _CLOCKS_DIFFER:
        raise ProblemError(422, "invalid-request", "created_at lies in the future.")
