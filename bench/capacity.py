"""What the program costs at a size: actions, bytes, rows and both bills. `python -m bench.capacity` prints the tables.

`docs/capacity.md` shows these tables, and a test holds that it shows them as they are. What was measured stands first,
each with the command that measures it, and tests hold it against the real servers. What is assumed, and what somebody
else decides (prices, limits), comes after it. Change it here, and copy the tables.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

HOURS_A_MONTH = 744
"""Temporal Cloud reckons a month so: 1 GB that is stored for a month is 744 GBh."""

DAYS_A_MONTH = 31
SECONDS_A_MONTH = HOURS_A_MONTH * 3600
GB = 1e9
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Path:
    """What one run costs from its start to where it stands.

    Args:
        actions: as Temporal Cloud counts them.
        size: of its history, in bytes.
        transitions: how often its state was written.
    """

    actions: int
    size: int
    transitions: int


# Measured: `pytest tests/test_history_budget.py -s`
CLICK = Path(actions=1, size=720, transitions=1)
LAPSED = Path(actions=2, size=1400, transitions=4)
WAITING = Path(actions=4, size=1900, transitions=4)
SETTLED = Path(actions=14, size=6100, transitions=14)
DELIVERY = Path(actions=4, size=2950, transitions=15)
"""A message to one endpoint, which takes it at once."""

# Measured: `pytest tests/test_capacity.py -s`
ROWS_SIGNED_UP, BYTES_SIGNED_UP = 9, 1200
ROWS_SETTLED, BYTES_SETTLED = 27, 5100
"""In the ledger's tables, of one referral with its friend; with what Stripe tells of the first payment."""
MESSAGES_SIGNED_UP, MESSAGES_SETTLED = 1, 5
WITH_INDEXES = 3.2
"""How much larger tables are with their indexes and free space than what stands in the rows."""

UPKEEP_ACTIONS = 60 * HOURS_A_MONTH * (3 + 2) + HOURS_A_MONTH * (3 + 6) + DAYS_A_MONTH * (3 + 2)
"""A month, whatever comes in: sweep, reconciliation and reminders. A Schedule's start is three actions, a step one."""

# Measured: `python -m bench.temporal_rows 1000`
OPEN_ROWS_BYTES = 2900
"""Of a waiting click in Temporal's own tables, its history included."""
VISIBILITY_SQL_BYTES = 8700
"""In an SQL visibility store: nearly sixty indexes, each with an entry of every run."""

# Assumed.
SIGN_UP = 0.10
"""Of those who click."""
REFUSED, PAY = 0.05, 0.30
"""Of those who sign up; the others wait for a payment that never comes."""
CLICK_DAYS = 97
"""How long a click waits: the window and its grace (rule 15)."""
CREDITED_DAYS = 38
"""How long a run lives whose friend pays: a week to the payment, a cycle to the expiry."""
RETENTION_DAYS = 30
PEAK = 5
"""How much more there is in the busiest minute than on average."""
GROWTH_MONTHS = 12
"""After how long the referrals that wait for a payment are counted: they never end by themselves."""
POSTGRES_OVER_SQLITE = 1.3
"""Row headers and half-filled pages."""
SEARCH_STORE_BYTES = 700
"""Of a run in Elasticsearch or OpenSearch, one copy."""

# Temporal Cloud, pay as you go, by its documentation (see docs/capacity.md).
ACTION_TIERS = ((5, 50.0), (10, 45.0), (20, 40.0), (50, 35.0), (100, 30.0), (200, 25.0), (float("inf"), 25.0))
"""Up to so many million actions a month, dollars a million. Above 200 million it is agreed: this is an upper bound."""
ACTIVE_GBH, RETAINED_GBH = 0.042, 0.00105
PLAN_SHARE, PLAN_LEAST = 0.10, 500.0
INCLUDED_ACTIONS, INCLUDED_ACTIVE_GB, INCLUDED_RETAINED_GB = 2.5 * MILLION, 2.5, 100.0
"""Of the Business plan."""

# Self-hosted: dollars a month. Put your own prices in.
VCPU, DISK_GB = 35.0, 0.12
COPIES = 2
"""Of each database: one that is used, one that stands by."""


@dataclass(frozen=True, slots=True)
class Design:
    """What is built so or otherwise."""

    name: str = "as built, no deliveries"
    delivered: bool = False
    """Whether the backend is told of every step, at one endpoint."""
    run_at_click: bool = True
    """Whether a click starts a run; else the signup does."""
    waits_months: int = GROWTH_MONTHS
    """For how long a run waits for a payment before it ends; the payment would start it again."""
    lapse_shows: bool = True
    """Whether a run that lapses writes its stage into the search attributes."""


@dataclass(frozen=True, slots=True)
class Load:
    """What comes in a month, and what stands there at any time.

    Args:
        clicks: a month.
        design: what is built so.
    """

    clicks: int
    design: Design = Design()

    @property
    def signups(self) -> float:
        """A month."""
        return self.clicks * SIGN_UP

    @property
    def paid(self) -> float:
        """Referrals credited a month."""
        return self.signups * PAY

    @property
    def lapse(self) -> float:
        """Clicks without a signup a month."""
        return self.clicks - self.signups

    @property
    def waiting(self) -> float:
        """Open runs of friends who signed up and have not paid."""
        return self.signups * (1 - REFUSED - PAY) * self.design.waits_months

    @property
    def open_clicks(self) -> float:
        """Open runs of mere clicks."""
        return self.lapse * CLICK_DAYS / DAYS_A_MONTH if self.design.run_at_click else 0

    @property
    def open_credited(self) -> float:
        """Open runs of friends who have paid, or will within the week."""
        return self.paid * CREDITED_DAYS / DAYS_A_MONTH

    @property
    def open(self) -> float:
        """All open runs."""
        return self.open_clicks + self.waiting + self.open_credited

    @property
    def closed(self) -> float:
        """Closed runs that are still kept."""
        lapsed = self.lapse if self.design.run_at_click else 0
        return (lapsed + self.signups * REFUSED + self.paid + self.messages) * RETENTION_DAYS / DAYS_A_MONTH

    @property
    def messages(self) -> float:
        """Messages to the backend a month."""
        if not self.design.delivered:
            return 0
        return self.paid * MESSAGES_SETTLED + (self.signups - self.paid) * MESSAGES_SIGNED_UP

    def _each(self, of: Callable[[Path], float]) -> float:
        lapsed = of(LAPSED) if self.design.run_at_click else 0
        return (
            self.lapse * lapsed
            + (self.signups - self.paid) * of(WAITING)
            + self.paid * of(SETTLED)
            + self.messages * of(DELIVERY)
        )

    @property
    def actions(self) -> float:
        """Temporal Cloud's a month."""
        spared = 0 if self.design.lapse_shows or not self.design.run_at_click else self.lapse
        start = 0 if self.design.run_at_click else self.signups
        return self._each(lambda path: path.actions) - spared - start + UPKEEP_ACTIONS

    @property
    def transitions(self) -> float:
        """How often Temporal writes a run's state a month."""
        return self._each(lambda path: path.transitions)

    @property
    def active_gb(self) -> float:
        """Of histories of open runs."""
        settling = (WAITING.size + SETTLED.size) / 2
        return (self.open_clicks * CLICK.size + self.waiting * WAITING.size + self.open_credited * settling) / GB

    @property
    def retained_gb(self) -> float:
        """Of histories of closed runs."""
        lapsed = self.lapse * LAPSED.size if self.design.run_at_click else 0
        rest = self.signups * REFUSED * WAITING.size + self.paid * SETTLED.size + self.messages * DELIVERY.size
        return (lapsed + rest) * RETENTION_DAYS / DAYS_A_MONTH / GB

    @property
    def ledger_gb(self) -> float:
        """What the ledger grows by a month."""
        unpaid = (self.signups - self.paid) * BYTES_SIGNED_UP
        return (unpaid + self.paid * BYTES_SETTLED) * WITH_INDEXES / GB

    @property
    def ledger_rows(self) -> float:
        """Likewise, in rows."""
        return (self.signups - self.paid) * ROWS_SIGNED_UP + self.paid * ROWS_SETTLED

    @property
    def temporal_gb(self) -> float:
        """Of Temporal's own database, without visibility."""
        rows = self.open * (OPEN_ROWS_BYTES - CLICK.size) + (self.closed * (OPEN_ROWS_BYTES - CLICK.size))
        return (rows / GB + self.active_gb + self.retained_gb) * POSTGRES_OVER_SQLITE

    @property
    def visibility_sql_gb(self) -> float:
        """Of an SQL visibility store."""
        return (self.open + self.closed) * VISIBILITY_SQL_BYTES * POSTGRES_OVER_SQLITE / GB

    @property
    def visibility_search_gb(self) -> float:
        """Of Elasticsearch or OpenSearch."""
        return (self.open + self.closed) * SEARCH_STORE_BYTES / GB


def action_dollars(actions: float) -> float:
    """What so many actions cost a month, pay as you go, beyond what the plan includes."""
    dollars, before = 0.0, 0.0
    for millions, price in ACTION_TIERS:
        upper = millions * MILLION
        dollars += max(0.0, min(actions, upper) - before) / MILLION * price
        before = upper
    return dollars


@dataclass(frozen=True, slots=True)
class CloudBill:
    """Temporal Cloud's bill for a month, in dollars, on the Business plan."""

    actions: float
    active: float
    retained: float

    @property
    def plan(self) -> float:
        """The plan's own price."""
        return max(PLAN_LEAST, PLAN_SHARE * (self.actions + self.active + self.retained))

    @property
    def total(self) -> float:
        """All of it."""
        return self.actions + self.active + self.retained + self.plan


def cloud_bill(load: Load) -> CloudBill:
    """What Temporal Cloud asks for a load."""
    return CloudBill(
        action_dollars(max(0.0, load.actions - INCLUDED_ACTIONS)),
        max(0.0, load.active_gb - INCLUDED_ACTIVE_GB) * HOURS_A_MONTH * ACTIVE_GBH,
        max(0.0, load.retained_gb - INCLUDED_RETAINED_GB) * HOURS_A_MONTH * RETAINED_GBH,
    )


@dataclass(frozen=True, slots=True)
class Machines:
    """What a self-hosted cluster is given, in processors: assumed, from the writes a second at the peak."""

    temporal: float
    temporal_database: float
    visibility: float

    @property
    def dollars(self) -> float:
        """A month."""
        return VCPU * (self.temporal + COPIES * (self.temporal_database + self.visibility))


def machines(load: Load) -> Machines:
    """Never less than a small cluster; beyond it one processor for so many writes a second."""
    writes = load.transitions / SECONDS_A_MONTH * PEAK
    return Machines(max(6, writes / 50), max(4, writes / 100), max(2, writes / 200))


def self_hosted_dollars(load: Load) -> float:
    """What machines and disks cost a month; the people who look after them come on top."""
    disks = (load.temporal_gb + load.visibility_search_gb) * COPIES * DISK_GB
    return machines(load).dollars + disks


LOADS = tuple(Load(clicks * MILLION) for clicks in (1, 10, 100))
LARGEST = LOADS[-1].clicks
DESIGNS = (
    Design(),
    Design("the backend told of every step", delivered=True),
    Design("a lapse not written into search attributes", lapse_shows=False),
    Design("waiting for a payment ends after 3 months", waits_months=3),
    Design("the run starts at the signup", run_at_click=False),
    Design("the run starts at the signup, waits 3 months", run_at_click=False, waits_months=3),
)


def paths() -> Iterable[tuple[str, ...]]:
    """What one run costs."""
    yield "one run", "actions", "bytes of history", "state written"
    for name, path in (
        ("a click that waits", CLICK),
        ("a click that lapsed", LAPSED),
        ("signed up, waits for a payment", WAITING),
        ("settled: credited, and both bonuses over", SETTLED),
        ("one message to the backend", DELIVERY),
    ):
        yield name, f"{path.actions}", f"{path.size:,}", f"{path.transitions}"


def rows() -> Iterable[tuple[str, ...]]:
    """What one referral leaves in the ledger."""
    yield "in the ledger, with the friend's account", "rows", "bytes in rows", "with indexes", "messages"
    yield "a click", "0 (a count)", "0", "0", "0"
    for name, number, size, messages in (
        ("signed up, waits for a payment", ROWS_SIGNED_UP, BYTES_SIGNED_UP, MESSAGES_SIGNED_UP),
        ("settled", ROWS_SETTLED, BYTES_SETTLED, MESSAGES_SETTLED),
    ):
        yield name, f"{number}", f"{size:,}", f"{size * WITH_INDEXES:,.0f}", f"{messages}"


def volumes() -> Iterable[tuple[str, ...]]:
    """What comes in, and what stands there."""
    yield "clicks a month", *(f"{load.clicks / MILLION:,.0f} million" for load in LOADS)
    facts: tuple[tuple[str, Callable[[Load], str]], ...] = (
        ("clicks a second, average and peak", lambda load: _rates(load.clicks)),
        ("signups a month", lambda load: _count(load.signups)),
        ("credited a month", lambda load: _count(load.paid)),
        ("open runs: mere clicks", lambda load: _count(load.open_clicks)),
        (f"open runs: signed up, unpaid, after {GROWTH_MONTHS} months", lambda load: _count(load.waiting)),
        ("open runs: credited, or about to be", lambda load: _count(load.open_credited)),
        (f"closed runs kept {RETENTION_DAYS} days", lambda load: _count(load.closed)),
        ("Cloud actions a month", lambda load: _count(load.actions)),
        ("Cloud actions a second, average and peak", lambda load: _rates(load.actions)),
        ("state writes a second, average and peak", lambda load: _rates(load.transitions)),
        ("ledger: rows a month", lambda load: _count(load.ledger_rows)),
        ("ledger: growth a month", lambda load: _gb(load.ledger_gb)),
    )
    for name, of in facts:
        yield name, *(of(load) for load in LOADS)


def cloud() -> Iterable[tuple[str, ...]]:
    """Temporal Cloud's bill."""
    yield "Temporal Cloud, dollars a month", *(f"{load.clicks / MILLION:,.0f} million clicks" for load in LOADS)
    bills = [cloud_bill(load) for load in LOADS]
    yield "actions", *(_dollars(bill.actions) for bill in bills)
    yield (
        "active storage",
        *(f"{_dollars(bill.active)} ({_gb(load.active_gb)})" for bill, load in zip(bills, LOADS, strict=True)),
    )
    yield (
        "retained storage",
        *(f"{_dollars(bill.retained)} ({_gb(load.retained_gb)})" for bill, load in zip(bills, LOADS, strict=True)),
    )
    yield "plan (Business)", *(_dollars(bill.plan) for bill in bills)
    yield "together", *(f"**{_dollars(bill.total)}**" for bill in bills)


def self_hosted() -> Iterable[tuple[str, ...]]:
    """A cluster of one's own."""
    yield "self-hosted", *(f"{load.clicks / MILLION:,.0f} million clicks" for load in LOADS)
    facts: tuple[tuple[str, Callable[[Load], str]], ...] = (
        ("Temporal's database", lambda load: _gb(load.temporal_gb)),
        ("visibility in SQL", lambda load: _gb(load.visibility_sql_gb)),
        ("visibility in a search store instead", lambda load: _gb(load.visibility_search_gb)),
        ("processors: Temporal, its database, visibility", _processors),
        ("machines and disks, dollars a month", lambda load: f"**{_dollars(self_hosted_dollars(load))}**"),
    )
    for name, of in facts:
        yield name, *(of(load) for load in LOADS)


def designs() -> Iterable[tuple[str, ...]]:
    """The same at the largest size, built otherwise."""
    yield f"at {LARGEST / MILLION:,.0f} million clicks", "actions", "open runs", "Cloud", "self-hosted"
    for design in DESIGNS:
        load = replace(LOADS[-1], design=design)
        yield (
            design.name,
            _count(load.actions),
            _count(load.open),
            _dollars(cloud_bill(load).total),
            _dollars(self_hosted_dollars(load)),
        )


def one_click() -> Iterable[tuple[str, ...]]:
    """What a click that never signs up costs in Temporal Cloud, by list prices."""
    dearest, cheapest = (price / MILLION for price in (ACTION_TIERS[0][1], ACTION_TIERS[-1][1]))
    stored = CLICK.size / GB * CLICK_DAYS * 24 * ACTIVE_GBH
    kept = LAPSED.size / GB * RETENTION_DAYS * 24 * RETAINED_GBH
    yield "a click that never signs up, in Temporal Cloud", "dollars a million"
    yield "its start and its lapse: 2 actions", f"{2 * cheapest * MILLION:,.0f} to {2 * dearest * MILLION:,.0f}"
    yield f"{CLICK_DAYS} days of active storage", f"{stored * MILLION:,.0f}"
    yield f"{RETENTION_DAYS} days of retained storage", f"{kept * MILLION:,.2f}"


TABLES: dict[str, Callable[[], Iterable[tuple[str, ...]]]] = {
    "paths": paths,
    "rows": rows,
    "volumes": volumes,
    "cloud": cloud,
    "one-click": one_click,
    "self-hosted": self_hosted,
    "designs": designs,
}


def markdown(table: Iterable[tuple[str, ...]]) -> str:
    """A table as the document has it."""
    head, *body = table
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in ([*head], rule, *map(list, body)))


def _count(number: float) -> str:
    if number >= MILLION:
        return f"{number / MILLION:,.0f} million" if number >= 10 * MILLION else f"{number / MILLION:,.1f} million"
    return f"{number:,.0f}"


def _rates(a_month: float) -> str:
    average = a_month / SECONDS_A_MONTH
    return f"{average:,.1f}, {average * PEAK:,.0f}"


def _gb(size: float) -> str:
    return f"{size:,.0f} GB" if size >= 10 else f"{size:,.1f} GB"


def _dollars(amount: float) -> str:
    return f"${amount:,.0f}"


def _processors(load: Load) -> str:
    found = machines(load)
    return f"{found.temporal:,.0f}, {found.temporal_database:,.0f}, {found.visibility:,.0f}"


if __name__ == "__main__":
    for name, table in TABLES.items():
        sys.stdout.write(f"<!-- {name} -->\n{markdown(table())}\n<!-- end -->\n\n")
