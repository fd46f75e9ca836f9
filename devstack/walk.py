"""One referral, from the click to the expiry of both bonuses, through the public HTTP contract alone.

It plays everybody outside: the product's backend, the friend's browser and Stripe. Both billing cycles end some seconds
after the payment, at different moments, so that both of the referral's durable timers fire for real.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import parse_qs, quote, urlsplit

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from devstack.stripe_events import PRICES_IN_CENTS, Subscription, signed

BROWSER = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)
TERMS_VERSION = "2026-01"

SECOND_CYCLE_AFTER_SECONDS = 4.0
"""How much later than the referrer's cycle the friend's ends."""

STEP_SECONDS = 60.0
"""How long the walk waits for what should come at once: a credit, a timer that is due."""

_POLL_SECONDS = 0.2
_PACES = 3
ROLES = ("referrer", "referee")


@dataclass(frozen=True)
class Target:
    """The deployment that the referral is taken through, and what its caller needs to know."""

    url: str
    api_key: str
    stripe_webhook_secret: str
    ui_url: str = ""
    namespace: str = "default"

    def run_url(self, referral_id: str) -> str:
        """The referral's run in Temporal's Web UI; empty where nobody knows the UI."""
        if not self.ui_url:
            return ""
        return f"{self.ui_url}/namespaces/{quote(self.namespace)}/workflows/referral-{quote(referral_id)}"


class WalkError(Exception):
    """The walk cannot go on; the message says at which step, and what was seen."""


@dataclass
class Outcome:
    """What the walk saw: minutes by role, and what was not as it should be."""

    plan: str
    referral_id: str | None = None
    stage: str | None = None
    credited: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    expired: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    problem: str | None = None
    referrer: str | None = None
    portal: str | None = None

    @property
    def as_it_should_be(self) -> bool:
        """Whether both sides were credited once, at one time and alike, and all of it expired."""
        return self.problem is None and self.stage == "settled"

    def document(self) -> dict[str, Any]:
        """For the machine: the last line of `referrals dev --once`."""
        document = {
            "referral_id": self.referral_id,
            "stage": self.stage,
            "plan": self.plan,
            "credited": self.credited,
            "expired": self.expired,
        }
        return document if self.problem is None else {**document, "problem": self.problem}


@dataclass
class Side:
    """An account of the walk, with its minutes as last seen."""

    role: str
    account: str
    email: str
    first_name: str
    subscription: Subscription
    grants: list[dict[str, Any]] = field(default_factory=list)

    @property
    def minutes(self) -> str:
        """In a few words, for the display."""
        if not self.grants:
            return "no bonus yet"
        grant = self.grants[0]
        expires_at = _time(grant["expires_at"]).strftime("%H:%M:%S")
        if grant["state"] == "expired":
            return f"{grant.get('expired', 0)} of {grant['minutes']} minutes expired at {expires_at}"
        return f"{grant['remaining']} of {grant['minutes']} minutes, until {expires_at}"


class Display(Protocol):
    """Is told how the walk goes on."""

    def happened(self, stage: str, what: str) -> None:
        """Something happened, and the referral is at this stage now."""

    def waiting(self, what: str) -> None:
        """From here on the walk waits."""

    def minutes(self, sides: list[Side]) -> None:
        """The minutes on both sides."""

    def run(self, url: str) -> None:
        """Where the referral's run can be watched."""

    def portal(self, whose: str, url: str) -> None:
        """The address that opens somebody's dashboard, once."""


class Backend:
    """The product's backend, the friend's browser and Stripe: everybody who speaks to the starter."""

    def __init__(self, target: Target, transport: httpx.BaseTransport | None = None) -> None:
        """Speak to this deployment."""
        self._target = target
        # No proxy and no .netrc of the environment: the starter is on this machine.
        self._client = httpx.Client(base_url=target.url, timeout=15, trust_env=False, transport=transport)

    def __enter__(self) -> Self:
        """Keep the connections open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        self._client.close()

    def api(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the API with the key.

        Raises:
            WalkError: no answer, or a refusal.
        """
        headers = {"Authorization": f"Bearer {self._target.api_key}"}
        answer = self._send(method, path, json=body, headers=headers)
        if not answer.is_success:
            raise WalkError(f"{method} {path} answered {answer.status_code}: {answer.text.strip()[:500]}")
        document: dict[str, Any] = answer.json()
        return document

    def follow(self, link: str) -> str:
        """Follow the link as a person does.

        Returns:
            The token that the signup page is called with.

        Raises:
            WalkError: it does not redirect, or without a token.
        """
        parts = urlsplit(link)
        headers = {
            "User-Agent": BROWSER,
            "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "Accept-Language": "en-US,en;q=0.9",
            "Sec-Fetch-Dest": "document",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-User": "?1",
        }
        # At the address that we know: the link itself may name a public one that does not lead here.
        answer = self._send("GET", parts.path, params={"c": "whatsapp"}, headers=headers)
        location: str = answer.headers.get("location", "")
        token: str = parse_qs(urlsplit(location).query).get("ref", [""])[0]
        if answer.status_code != 302 or not token:
            raise WalkError(f"the link answered {answer.status_code}, not a redirect with a token: {location}")
        return token

    def stripe(self, event: dict[str, Any]) -> None:
        """Deliver an event as Stripe does, correctly signed.

        Raises:
            WalkError: it was not taken.
        """
        body, headers = signed(event, self._target.stripe_webhook_secret)
        answer = self._send("POST", "/stripe/webhooks", content=body, headers=headers)
        if not answer.is_success:
            raise WalkError(f"{event['type']} was answered {answer.status_code}: {answer.text.strip()[:500]}")

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise WalkError(f"{method} {path} got no answer: {error!r}") from None


class _Walk:
    def __init__(
        self, backend: Backend, target: Target, plan: str, display: Display, sleep: Callable[[float], None]
    ) -> None:
        # Nobody's account, customer or address is ever used twice: a second walk on the same data is another referral.
        run = secrets.token_hex(5)
        self._backend = backend
        self._target = target
        self._display = display
        self._sleep = sleep
        self.outcome = Outcome(plan)
        self._referrer = Side(
            "referrer",
            f"acct-rita-{run}",
            f"rita.{run}@example.com",
            "Rita",
            Subscription(f"cus_rita{run}", "starter"),
        )
        self._referee = Side(
            "referee", f"acct-fred-{run}", f"fred.{run}@example.com", "Fred", Subscription(f"cus_fred{run}", plan)
        )
        self._sides = [self._referrer, self._referee]
        self.outcome.referrer = self._referrer.account

    def go(self, cycle_seconds: float) -> None:
        began = time.monotonic()
        link = self._referrer_takes_a_link()
        self._friend_signs_up(link)
        # A cycle that is over before the bonus is credited would not bound it: on a slow machine cycles are longer.
        pace = time.monotonic() - began
        ends = self._both_pay(max(cycle_seconds, _PACES * pace))
        self._both_are_credited()
        # Now there is something to see on it, and something to come: it moves by itself when the cycle ends.
        self._display.portal(self._referrer.first_name, self._new_portal())
        self._both_expire(max(ends))
        # An address opens once, and for minutes only: whoever reads on after the walk gets a fresh one.
        self.outcome.portal = self._new_portal()

    def _referrer_takes_a_link(self) -> str:
        rita, now = self._referrer, _now()
        self._put_account(rita, created_at=now - timedelta(days=32))
        # Paid a month ago; the next payment is on its way, so the subscriber is a paid one still.
        start, end = now - timedelta(days=31), now - timedelta(minutes=1)
        subscription = rita.subscription
        self._backend.stripe(subscription.created(_unix(start), _unix(end)))
        self._backend.stripe(subscription.paid(_unix(start), _unix(end), _unix(start), renewal=False))
        link = self._backend.api("POST", f"/v1/accounts/{rita.account}/referral-link", {"terms_version": TERMS_VERSION})
        self._display.happened("", f"Rita subscribes, accepts the terms and has her link: {link['url']}")
        return str(link["url"])

    def _friend_signs_up(self, link: str) -> None:
        fred = self._referee
        token = self._backend.follow(link)
        self._display.happened("clicked", "Fred follows it on his phone and is led to the signup")
        signup = {
            "account_id": fred.account,
            "email": fred.email,
            "created_at": _now().isoformat(),
            "referral_token": token,
            "user_agent": BROWSER,
        }
        referral_id = str(self._backend.api("POST", "/v1/signups", signup)["referral_id"])
        self.outcome.referral_id = referral_id
        self._put_account(fred, created_at=_now())
        if url := self._target.run_url(referral_id):
            self._display.run(url)
        self._until("the signup is attributed", lambda: self._look() == "signed_up")
        self._display.happened("signed_up", f"Fred signs up; this is referral {referral_id}")

    def _both_pay(self, cycle_seconds: float) -> tuple[datetime, datetime]:
        rita, fred, now = self._referrer, self._referee, _now()
        first = now + timedelta(seconds=cycle_seconds)
        second = first + timedelta(seconds=SECOND_CYCLE_AFTER_SECONDS)
        start = _unix(now)
        # Whole seconds, as Stripe has them: rounded up, lest a cycle be over before it begins.
        self._backend.stripe(
            rita.subscription.paid(_unix(now - timedelta(minutes=1)), _unix(first) + 1, start, renewal=True)
        )
        self._display.happened("signed_up", f"Rita's renewal is paid: her cycle ends in {cycle_seconds:.0f} s")
        self._backend.stripe(fred.subscription.created(start, _unix(second) + 1))
        self._backend.stripe(fred.subscription.paid(start, _unix(second) + 1, start, renewal=False))
        ends_in = cycle_seconds + SECOND_CYCLE_AFTER_SECONDS
        price = f"${PRICES_IN_CENTS[self.outcome.plan] / 100:.0f}"
        self._display.happened(
            "signed_up", f"Fred pays {price} for {self.outcome.plan.title()}: his cycle ends in {ends_in:.0f} s"
        )
        return first, second

    def _both_are_credited(self) -> None:
        self._display.waiting("for the bonus")
        self._until("both sides are credited", lambda: self._look() in ("credited", "settled"))
        referral = self._referral()
        self._look_at_minutes()
        for side in self._sides:
            if len(side.grants) != 1:
                raise WalkError(f"the {side.role} has {len(side.grants)} grants of this referral, not one")
        grants = {side.role: side.grants[0] for side in self._sides}
        self.outcome.credited = {role: int(grants[role]["minutes"]) for role in ROLES}
        times = {role: _time(grants[role]["credited_at"]) for role in ROLES}
        if times["referrer"] != times["referee"]:
            raise WalkError(f"the two sides were credited at different times: {times}")
        if any(minutes != referral["bonus_minutes"] or minutes <= 0 for minutes in self.outcome.credited.values()):
            raise WalkError(f"{self.outcome.credited} were credited, the referral says {referral['bonus_minutes']}")
        if referral["plan"] != self.outcome.plan:
            raise WalkError(f"the bonus is for plan {referral['plan']}, paid was {self.outcome.plan}")
        minutes, at = self.outcome.credited["referrer"], times["referrer"].strftime("%H:%M:%S")
        self._display.happened("credited", f"both get {minutes} minutes, in one transaction at {at}")
        self._display.minutes(self._sides)

    def _both_expire(self, last: datetime) -> None:
        for side in self._sides:
            expires_at = _time(side.grants[0]["expires_at"])
            if expires_at > last + timedelta(seconds=5):
                raise WalkError(
                    f"the {side.role}'s minutes last until {expires_at.isoformat()}: the credit came after the end "
                    f"of the cycle; on a machine this slow, choose a greater --cycle-seconds"
                )
        reported: set[str] = set()

        def over() -> bool:
            settled = self._look() == "settled"
            self._look_at_minutes()
            for side in self._sides:
                if side.grants[0]["state"] == "expired" and side.role not in reported:
                    reported.add(side.role)
                    stage = str(self.outcome.stage)
                    self._display.happened(stage, f"{side.first_name}'s cycle is over")
                    self._display.minutes(self._sides)
            return settled

        self._display.waiting("for the two cycles to end")
        left = (last - _now()).total_seconds()
        self._until("both bonuses expire", over, max(left, 0) + STEP_SECONDS)
        for side in self._sides:
            grant = side.grants[0]
            self.outcome.expired[side.role] = int(grant["expired"])
            if len(side.grants) != 1:
                raise WalkError(f"the {side.role} has {len(side.grants)} grants of this referral, not one")
            if grant["state"] != "expired" or grant["remaining"] != 0 or grant["expired"] != grant["minutes"]:
                raise WalkError(f"the {side.role}'s minutes did not all expire: {grant}")
        self._display.happened("settled", "the referral is over: credited once, expired on both sides")

    def _new_portal(self) -> str:
        session = self._backend.api("POST", f"/v1/accounts/{self._referrer.account}/portal-sessions")
        if _time(session["expires_at"]) <= _now():
            raise WalkError(f"the portal session is over before it begins: {session['expires_at']}")
        return str(session["url"])

    # Looking

    def _referral(self) -> dict[str, Any]:
        return self._backend.api("GET", f"/v1/referrals/{self.outcome.referral_id}")

    def _look(self) -> str:
        referral = self._referral()
        self.outcome.stage = stage = str(referral["stage"])
        if stage in ("lapsed", "refused", "voided"):
            raise WalkError(f"the referral ended without a bonus ({stage}): {referral['reason']}")
        if referral.get("needs_attention"):
            raise WalkError(f"the referral needs attention: {referral.get('review_reasons')}")
        return stage

    def _look_at_minutes(self) -> None:
        for side in self._sides:
            grants = self._backend.api("GET", f"/v1/accounts/{side.account}/bonus-minutes")["grants"]
            side.grants = [grant for grant in grants if grant["referral_id"] == self.outcome.referral_id]
            if any(grant["role"] != side.role for grant in side.grants):
                raise WalkError(f"a grant of the {side.role} is in another role: {side.grants}")

    def _until(self, what: str, condition: Callable[[], bool], seconds: float = STEP_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise WalkError(f"waited {seconds:.0f} seconds until {what}; the stage is {self.outcome.stage}")
            self._sleep(_POLL_SECONDS)

    def _put_account(self, side: Side, created_at: datetime) -> None:
        self._backend.api(
            "PUT",
            f"/v1/accounts/{side.account}",
            {
                "email": side.email,
                "created_at": created_at.isoformat(),
                "stripe_customer_id": side.subscription.customer,
                "first_name": side.first_name,
                "show_first_name": True,
            },
        )


def walk_referral(
    target: Target,
    plan: str,
    cycle_seconds: float,
    display: Display,
    sleep: Callable[[float], None] = time.sleep,
    transport: httpx.BaseTransport | None = None,
) -> Outcome:
    """Take one referral from the click to the expiry of both bonuses.

    Args:
        target: the deployment.
        plan: what the friend buys: `starter`, `pro` or `power`.
        cycle_seconds: how long after the payment the referrer's cycle ends; the friend's ends some seconds later.
        display: is told how it goes on.
        sleep: waits between two looks; may raise to end the walk.
        transport: another way to the deployment than the network.

    Returns:
        What was seen. A walk that failed says so in `problem`.
    """
    if plan not in PRICES_IN_CENTS:
        return Outcome(plan, problem=f"there is no plan {plan!r}: choose one of {', '.join(PRICES_IN_CENTS)}")
    with Backend(target, transport) as backend:
        walk = _Walk(backend, target, plan, display, sleep)
        try:
            walk.go(cycle_seconds)
        except WalkError as error:
            walk.outcome.problem = str(error)
        except (KeyError, ValueError, TypeError) as error:
            walk.outcome.problem = f"an answer is not what the contract has: {error!r}"
        return walk.outcome


def _now() -> datetime:
    return datetime.now(UTC)


def _unix(at: datetime) -> int:
    return int(at.timestamp())


def _time(value: str) -> datetime:
    return datetime.fromisoformat(value)


# What is shown of it


class PlainDisplay:
    """One line for each thing that happens, without control codes: for pipes and logs."""

    def __init__(self, console: Console) -> None:
        """Write to this console."""
        self._file = console.file
        self._minutes = ""

    def happened(self, stage: str, what: str) -> None:
        """Write it down."""
        self._line(f"{stage:<10} {what}")

    def waiting(self, what: str) -> None:
        """Nothing moves in a log."""

    def minutes(self, sides: list[Side]) -> None:
        """Write them down if they have changed."""
        minutes = ", ".join(f"{side.first_name} ({side.role}): {side.minutes}" for side in sides)
        if minutes != self._minutes:
            self._minutes = minutes
            self._line(f"{'':<10} {minutes}")

    def run(self, url: str) -> None:
        """Write it down."""
        self._line(f"{'':<10} watch it at {url}")

    def portal(self, whose: str, url: str) -> None:
        """Write it down."""
        self._line(f"{'':<10} {whose}'s dashboard opens once at {url}")

    def _line(self, text: str) -> None:
        self._file.write(f"{text.rstrip()}\n")
        self._file.flush()


class LiveDisplay:
    """The story so far with its stages, and below it both sides' minutes as they are now: for a terminal."""

    def __init__(self, console: Console) -> None:
        """Show it on this console."""
        self._began = time.monotonic()
        self._rows: list[tuple[str, str, str]] = []
        self._sides: list[Side] = []
        self._waiting = ""
        self._run = ""
        self._portal = ("", "")
        self._spinner = Spinner("dots")
        self.live = Live(console=console, refresh_per_second=8, get_renderable=self._show)

    def happened(self, stage: str, what: str) -> None:
        """Add a line to the story."""
        self._rows.append((f"{time.monotonic() - self._began:5.1f} s", stage, what))

    def waiting(self, what: str) -> None:
        """Show that it goes on."""
        self._waiting = what

    def minutes(self, sides: list[Side]) -> None:
        """Show them."""
        self._sides = list(sides)

    def run(self, url: str) -> None:
        """Show the link."""
        self._run = url

    def portal(self, whose: str, url: str) -> None:
        """Show the link; a newer one takes its place."""
        self._portal = (f"[bold]{whose}'s dashboard[/], once", url)

    def _show(self) -> RenderableType:
        story = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        story.add_column(style="dim", no_wrap=True)
        story.add_column(style="bold green", no_wrap=True)
        story.add_column()
        for at, stage, what in self._rows:
            story.add_row(at, stage, escape(what))
        parts: list[RenderableType] = [story]
        if self._sides:
            minutes = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
            for side in self._sides:
                minutes.add_row(f"[bold]{side.first_name}[/]", side.role, f"[magenta]{side.minutes}[/]")
            parts += ["", minutes]
        links = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        links.add_column(no_wrap=True)
        links.add_column(overflow="fold")
        for name, url in (("[bold]this workflow[/]", self._run), self._portal):
            if url:
                links.add_row(name, f"[link={url}][cyan]{url}[/][/link]")
        if links.row_count:
            parts += ["", links]
        if self._waiting:
            self._spinner.update(text=f"waiting {self._waiting}")
            parts += ["", self._spinner]
        return Group("", *parts, "")


@contextmanager
def referral_display(console: Console) -> Iterator[Display]:
    """A display that suits the console: live on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield PlainDisplay(console)
        return
    display = LiveDisplay(console)
    with display.live:
        yield display
        display.waiting("")
        display.portal("", "")
