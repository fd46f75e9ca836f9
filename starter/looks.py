"""What Prometheus is told of the ledger: looked up when it asks, and kept for a while.

Every starter tells the same, also while no worker runs: that is when it matters. And nobody tells what was long ago.
"""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from time import monotonic

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy.exc import SQLAlchemyError

from ledger.database import Database, schema_version
from ledger.measures import Measures, measures
from ledger.migrate import newest_version

KEPT = timedelta(seconds=10)
"""How long a look is good for: whoever asks more often costs the ledger nothing more."""

PATIENCE = timedelta(seconds=5)
"""Prometheus waits ten seconds by itself, and gets all other metrics if the ledger does not answer."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_HELP = {
    "referrals_ledger_up": "Whether PostgreSQL answered at the last look.",
    "referrals_schema_mismatch": "Whether the schema is of another version than this program.",
    "referrals_expiry_lag_seconds": "For how long the bonus that is due the longest has been due.",
    "referrals_signup_lag_seconds": "For how long the reported signup that waits the longest has not been decided.",
    "referrals_in_review": "Referrals that are held until an operator decides.",
    "referrals_in_review_oldest_seconds": "How long the one that is held the longest has been held.",
    "referrals_deliveries_pending": "Messages that not every endpoint has taken yet, counted up to 100000.",
    "referrals_delivery_lag_seconds": "For how long nobody has taken up the message that is due the longest.",
    "referrals_events_untold": "Stripe's events that were applied and not told to every run, counted up to 100000.",
    "referrals_events_untold_oldest_seconds": "For how long the first of them has waited.",
    "referrals_reconciliation_lag_seconds": "How long ago the time is until which all of Stripe's events were read.",
}


class Looks:
    """Looks into the ledger for Prometheus. One at a time, however many ask."""

    def __init__(self, kept: timedelta = KEPT) -> None:
        """Keep what was seen for that long; nothing was yet."""
        self._kept = kept.total_seconds()
        self._wanted = newest_version()
        self._at: float | None = None
        self._turn = asyncio.Lock()
        self._up = False
        self._mismatch: bool | None = None
        self._seen: Measures | None = None

    async def look(self, database: Database) -> None:
        """Look, unless somebody did a moment ago."""
        async with self._turn:
            if self._at is not None and monotonic() - self._at < self._kept:
                return
            self._up, self._mismatch, self._seen = False, None, None
            try:
                async with asyncio.timeout(PATIENCE.total_seconds()):
                    async with database.transaction() as transaction:
                        self._mismatch = await schema_version(transaction) != self._wanted
                    self._up = True
                    async with database.transaction() as transaction:
                        self._seen = await measures(transaction)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("the ledger was not measured", error=type(error).__name__)
            self._at = monotonic()

    def collect(self) -> Iterator[Metric]:
        """What was seen, for Prometheus's library; of what could not be, the name alone."""
        values: dict[str, float | None] = {"referrals_ledger_up": self._up, "referrals_schema_mismatch": self._mismatch}
        if seen := self._seen:
            values |= {
                "referrals_expiry_lag_seconds": seen.expiry_lag,
                "referrals_signup_lag_seconds": seen.signup_lag,
                "referrals_in_review": seen.in_review,
                "referrals_in_review_oldest_seconds": seen.in_review_lag,
                "referrals_deliveries_pending": seen.messages,
                "referrals_delivery_lag_seconds": seen.message_lag,
                "referrals_events_untold": seen.untold,
                "referrals_events_untold_oldest_seconds": seen.untold_lag,
                "referrals_reconciliation_lag_seconds": seen.events_lag,
            }
        for name, help_text in _HELP.items():
            family = GaugeMetricFamily(name, help_text)
            if (value := values.get(name)) is not None:
                family.add_metric([], float(value))
            yield family
        attention = GaugeMetricFamily(
            "referrals_needs_attention",
            "Referrals that need somebody, by why; one may be there twice.",
            labels=["reason"],
        )
        for reason, number in seen.needs_attention.items() if seen else ():
            attention.add_metric([reason], number)
        yield attention
