"""What Prometheus is told."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """The counters of one app, in a registry of their own."""

    def __init__(self) -> None:
        """Begin with zero."""
        self._registry = CollectorRegistry()
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
            "Events that Stripe sent, by type and answer.",
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

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)
