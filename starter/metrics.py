"""What Prometheus is told."""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from billing.events import HANDLED_TYPES
from ledger.counting import CREDIT_SECONDS, Add, Counting
from starter.looks import Looks

_EVENT_TYPES = (*sorted(HANDLED_TYPES), "other")


class Metrics:
    """The counters of one app, in a registry of their own."""

    def __init__(self, plans: Iterable[str], looks: Looks) -> None:
        """Begin with zero; `plans` are on sale, and `looks` knows of the ledger."""
        self._registry = CollectorRegistry()
        self.looks = looks
        self._registry.register(looks)
        self.count = Counting(_PrometheusMeter(self._registry), plans)
        self.clicks = Counter(
            "referrals_clicks_total",
            "Visits to referral links, by who came: person, repeat, machine, prefetch, unknown.",
            ["visitor"],
            registry=self._registry,
        )
        self.clicks_not_started = Counter(
            "referrals_clicks_not_started_total",
            "Clicks that did not reach Temporal; their signup will start the run.",
            registry=self._registry,
        )
        self.runs_over = Counter(
            "referrals_runs_over_total",
            "Payments that found a run ended from outside although the ledger still waits for it; look at the log.",
            registry=self._registry,
        )
        self.signups = Counter(
            "referrals_signups_total",
            "Reported signups, by answer: accepted, known, lapsed, invalid.",
            ["answer"],
            registry=self._registry,
        )
        self.stripe_events = Counter(
            "referrals_stripe_events_total",
            "Events that Stripe sent, by type and answer: handled, not_ours, malformed, forged.",
            ["type", "answer"],
            registry=self._registry,
        )
        self.minutes_used = Counter(
            "referrals_minutes_used_total",
            "Minutes that were used, by where they came from: bonus, plan. A call told twice counts twice.",
            ["source"],
            registry=self._registry,
        )
        self.limited = Counter(
            "referrals_limited_total",
            "Requests refused for their number, by what there were too many of: clicks, unknown_codes, …",
            ["limited"],
            registry=self._registry,
        )
        self.portal_streams = Gauge(
            "referrals_portal_streams",
            "Dashboards that are open and told of news.",
            registry=self._registry,
        )
        self.requests = Histogram(
            "referrals_http_request_seconds",
            "Requests, by route, method and status.",
            ["route", "method", "status"],
            registry=self._registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )

        for visitor in ("person", "repeat", "machine", "prefetch", "unknown"):
            self.clicks.labels(visitor)
        for answer in ("accepted", "known", "lapsed", "invalid"):
            self.signups.labels(answer)
        for source in ("bonus", "plan"):
            self.minutes_used.labels(source)
        for kind in _EVENT_TYPES:
            for answer in ("handled", "not_ours"):
                self.stripe_events.labels(kind, answer)
        self.stripe_events.labels("unknown", "malformed")
        self.stripe_events.labels("unknown", "forged")

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)


class _PrometheusMeter:
    """The ledger's counters, kept by Prometheus's own library."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, description: str, labels: Sequence[str]) -> Add:
        counter = Counter(name, description, labels, registry=self._registry)
        return lambda number, labels: (counter.labels(**labels) if labels else counter).inc(number)

    def histogram(self, name: str, description: str) -> Add:
        histogram = Histogram(name, description, registry=self._registry, buckets=CREDIT_SECONDS)
        return lambda number, _: histogram.observe(number)
