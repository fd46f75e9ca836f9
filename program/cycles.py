"""Billing cycles: who is a paid subscriber, and until when a bonus can be used (rules 1, 7, 8 and 9)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

LONGEST_BONUS = timedelta(days=31)
"""No bonus can be used for longer (rule 7)."""

RENEWAL_GRACE = timedelta(days=3)
"""How long an account still counts as a paid subscriber after a paid period: Stripe collects a renewal late."""


CLOCKS_DIFFER = timedelta(minutes=1)
"""How much later than now a cycle that is paid for may begin: Stripe's clock may be ahead of the ledger's."""


@dataclass(frozen=True, slots=True)
class Period:
    """One billing period of a subscription to a plan, from `start` up to, but without, `end` (both UTC).

    Args:
        paid: whether an invoice for it was paid; one merely seen on the subscription (a trial, a moved date) is not.
    """

    subscription: str
    start: datetime
    end: datetime
    paid: bool


def paid_periods(periods: Iterable[Period]) -> list[Period]:
    """The paid periods, each as long as the longest period known with its subscription and start."""
    known = list(periods)
    ends: dict[tuple[str, datetime], datetime] = {}
    for period in known:
        key = (period.subscription, period.start)
        ends[key] = max(period.end, ends.get(key, period.end))
    return [
        Period(period.subscription, period.start, ends[period.subscription, period.start], paid=True)
        for period in known
        if period.paid
    ]


def cycle_at(now: datetime, periods: Iterable[Period]) -> Period | None:
    """The paid period that an account is in; of several, the one that ends last."""
    current = [period for period in paid_periods(periods) if period.start <= now < period.end]
    return max(current, key=lambda period: (period.end, period.start, period.subscription), default=None)


def is_paid_subscriber(now: datetime, periods: Iterable[Period], ended: Mapping[str, datetime]) -> bool:
    """Whether an account counts as a paid subscriber (rule 1).

    Args:
        now: the time to judge for, UTC.
        periods: the periods of all its subscriptions.
        ended: when each subscription that is over ended, by its id.
    """
    return any(
        period.start <= now < period.end
        or (period.end <= now < period.end + RENEWAL_GRACE and not _over(period.subscription, now, ended))
        for period in paid_periods(periods)
    )


def _over(subscription: str, now: datetime, ended: Mapping[str, datetime]) -> bool:
    return subscription in ended and ended[subscription] <= now


def _cycle_of_credit(credited_at: datetime, periods: Iterable[Period]) -> Period | None:
    """The cycle that an account is in when it is credited; one paid for already may begin by a clock that is ahead."""
    known = list(periods)
    begins = [p for p in paid_periods(known) if credited_at < p.start <= credited_at + CLOCKS_DIFFER]
    return cycle_at(credited_at, known) or min(begins, key=lambda p: (p.start, p.end, p.subscription), default=None)


def moved_expiry(expires_at: datetime, credited_at: datetime, periods: Iterable[Period]) -> datetime:
    """Where the periods known now move the expiry of a grant (rule 9).

    A period that begins before the grant's end and ends after it takes the grant along, at most to rule 7's cap.
    A renewal begins at the end and moves nothing. The answer is never earlier than `expires_at`.
    """
    cap = credited_at + LONGEST_BONUS
    for period in sorted(periods, key=lambda period: period.start):
        if period.start < expires_at < period.end:
            expires_at = max(expires_at, min(period.end, cap))
    return expires_at


def bonus_expiry(credited_at: datetime, periods: Iterable[Period]) -> datetime:
    """When a grant credited now expires (rules 7, 8 and 9).

    Args:
        credited_at: the moment of the credit, UTC.
        periods: all periods known of the grant's own account.
    """
    known = list(periods)
    cap = credited_at + LONGEST_BONUS
    cycle = _cycle_of_credit(credited_at, known)
    if cycle is None:
        return cap
    return moved_expiry(min(cycle.end, cap), credited_at, known)


def expired(expires_at: datetime, now: datetime) -> bool:
    """Whether a grant can no longer be used (rule 7)."""
    return now >= expires_at
