"""What is said to a reconciliation and what it answers. Nothing personal."""

from dataclasses import dataclass
from datetime import datetime

RECONCILIATION = "ReconciliationWorkflow"
RECONCILIATION_ID = "referrals-reconcile"
"""The id of the Schedule, and what its runs' ids begin with."""

BY_HAND_ID = "referrals-reconcile-by-hand"
"""The id of a run that an operator started."""


@dataclass
class Progress:
    """How far a reconciliation is.

    Args:
        since: from when on events are still to be read, UTC.
        until: until when, UTC.
        advances: whether what was read moves the ledger's cursor: not where events before `since` were left out.
        gap: events were missed that Stripe has no more: those of more than 30 days ago.
        events_after: the event that the last page ended with, within the span that is being read.
        events: how many events were applied that had never been, or not wholly.
        unreadable: how many events and invoices could not be read.
        told: how many events were applied before, and the runs concerned told now.
        invoices: how many paid invoices were found that no event had told of.
        referrals: how many waiting referrals were compared with Stripe's invoices.
        told_all: whether everybody was told.
    """

    since: datetime
    until: datetime
    advances: bool = True
    gap: bool = False
    events_after: str | None = None
    events: int = 0
    unreadable: int = 0
    told: int = 0
    invoices: int = 0
    referrals: int = 0
    told_all: bool = False


@dataclass(frozen=True)
class ReconciliationStart:
    """What a reconciliation begins with.

    Args:
        since: from when on events are read; without it from where the last one ended, UTC.
        referrals: how many waiting referrals are compared with Stripe's invoices at most; the next run goes on there.
        progress: where a run that goes on for another one begins.
    """

    since: datetime | None = None
    referrals: int = 2000
    progress: Progress | None = None


@dataclass(frozen=True)
class Span:
    """A span of events to read one page of.

    Args:
        since: from when on, UTC.
        until: until before when, UTC.
        after: the event that the page before ended with.
        advances: whether the ledger's cursor moves to `until` with the last page.
    """

    since: datetime
    until: datetime
    after: str | None
    advances: bool


@dataclass(frozen=True)
class PageRead:
    """What became of a page of events.

    Args:
        after: the event that it ended with; none if it was the last one.
        applied: how many events were applied that had never been, or not wholly.
        unreadable: how many could not be read.
    """

    after: str | None
    applied: int
    unreadable: int


@dataclass(frozen=True)
class Compared:
    """What became of comparing some waiting referrals with Stripe's invoices.

    Args:
        referrals: how many were compared.
        invoices: how many paid invoices were found that no event had told of.
        round_over: whether all that wait had their turn; the next round begins with the first again.
        unreadable: how many paid invoices could not be read.
    """

    referrals: int
    invoices: int
    round_over: bool
    unreadable: int = 0


@dataclass(frozen=True)
class Reconciled:
    """What a reconciliation mended; of one that cannot be, for Stripe's API cannot be asked, only that.

    Args:
        possible: whether there is a key for Stripe's API.
        progress: what was done.
    """

    possible: bool
    progress: Progress | None = None
