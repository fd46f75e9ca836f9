"""`referrals dev --once`: one referral on real servers, through HTTP alone, and what a machine reads of it."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import httpx
import psutil
import pytest
import stripe
from rich.console import Console

from devstack.ports import free_port
from devstack.stripe_events import Subscription, signed
from devstack.walk import LiveDisplay, Outcome, PlainDisplay, Target, referral_display, walk_referral
from runtime.settings import PROJECT


@pytest.fixture
def data() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="referrals-tests-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "data"


def _once(data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    ports: list[str] = []
    for name in ("--port", "--temporal-port", "--ui-port", "--postgres-port", "--metrics-port"):
        ports += [name, str(free_port())]
    surrounding = {name: value for name, value in os.environ.items() if not name.startswith(("REFERRALS_", "TEMPORAL"))}
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "cli.main", "dev", "--once", "--data", str(data), *ports, *options],
        cwd=PROJECT,
        env=surrounding,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_one_referral_lives_from_click_to_expiry_and_a_second_start_finds_its_data(data: Path) -> None:
    seen: set[str] = set()
    for plan, minutes in (("pro", 90), ("starter", 22)):
        done = _once(data, "--plan", plan, "--cycle-seconds", "3")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        outcome = json.loads(done.stdout.splitlines()[-1])
        seen.add(outcome.pop("referral_id"))
        both = {"referrer": minutes, "referee": minutes}
        assert outcome == {"stage": "settled", "plan": plan, "credited": both, "expired": both}
        assert "\x1b" not in done.stdout
        for stage in ("clicked", "signed_up", "credited", "settled"):
            assert re.search(rf"^{stage} ", done.stdout, re.MULTILINE), done.stdout
        assert re.search(r"http://127\.0\.0\.1:\d+/namespaces/default/workflows/referral-\S+", done.stdout)
        assert re.search(r"Rita's dashboard opens once at http://127\.0\.0\.1:\d+/portal\?session=\S+", done.stdout)
        assert not list(data.glob("*.pid"))
        assert not _still_running(data)
    assert len(seen) == 2


def _still_running(data: Path) -> list[str]:
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline"])
        if str(data) in " ".join(process.info["cmdline"] or []) and process.pid != os.getpid()
    ]


def test_a_plan_that_is_not_sold_is_refused_with_the_names_of_those_that_are() -> None:
    outcome, _ = _walk(lambda request: pytest.fail(f"called {request.url}"), plan="gold")
    assert not outcome.as_it_should_be
    assert outcome.problem is not None
    assert "starter, pro, power" in outcome.problem


def _walk(answer: "object", plan: str = "pro") -> tuple[Outcome, str]:
    """Walk against a deployment that answers as told."""
    written = StringIO()
    console = Console(file=written)
    target = Target("http://starter.example", "key", "whsec_secret", "http://ui.example")
    transport = httpx.MockTransport(answer)  # type: ignore[arg-type]
    with referral_display(console) as display:
        outcome = walk_referral(target, plan, 6, display, lambda _: None, transport)
    return outcome, written.getvalue()


def test_an_answer_that_is_none_of_the_contract_is_a_clear_failure() -> None:
    outcome, _ = _walk(lambda _: httpx.Response(503, text="come again"))
    assert outcome.problem is not None
    assert "503" in outcome.problem
    assert "come again" in outcome.problem
    assert outcome.document()["problem"] == outcome.problem


def test_a_starter_that_is_away_is_a_clear_failure() -> None:
    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    outcome, _ = _walk(nobody)
    assert outcome.problem is not None
    assert "no answer" in outcome.problem


class Deployment:
    """The starter's answers of a referral that goes as it should, unless a test changes one of them."""

    def __init__(self, **changes: object) -> None:
        self.changes = changes
        self.looks = 0
        self.payments = 0
        self.sessions = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/stripe/webhooks":
            event = stripe.Webhook.construct_event(request.content, request.headers["Stripe-Signature"], "whsec_secret")
            self.payments += event["type"] == "invoice.paid"
            return httpx.Response(200, json={})
        if path.startswith("/r/"):
            assert "Mozilla" in request.headers["User-Agent"]
            return httpx.Response(302, headers={"Location": "https://signup.example/?ref=token"})
        assert request.headers["Authorization"] == "Bearer key"
        if path.endswith("/referral-link"):
            return httpx.Response(200, json={"code": "abc", "url": "https://public.example/r/abc"})
        if path == "/v1/signups":
            assert json.loads(request.content)["referral_token"] == "token"
            return httpx.Response(202, json={"referral_id": "r1"})
        if path.endswith("/portal-sessions"):
            assert request.method == "POST"
            assert "rita" in path
            self.sessions += 1
            ends = self.changes.get("session_ends", "2999-01-01T00:00:00Z")
            return httpx.Response(
                201, json={"url": f"https://public.example/portal?session=s{self.sessions}", "expires_at": ends}
            )
        if path.endswith("/bonus-minutes"):
            return httpx.Response(200, json={"grants": self._grants("rita" in path)})
        return httpx.Response(200, json=self._referral())

    def _referral(self) -> dict[str, object]:
        if self.payments == 3:
            self.looks += 1
        stage = "signed_up" if self.looks == 0 else "credited" if self.looks < 3 else "settled"
        referral = {"stage": stage, "reason": None, "plan": "pro", "bonus_minutes": 90, "needs_attention": False}
        return {**referral, **{name: value for name, value in self.changes.items() if name in referral and self.looks}}

    def _grants(self, referrer: bool) -> list[dict[str, object]]:
        over = self.looks >= 3
        grant: dict[str, object] = {
            "referral_id": "r1",
            "role": "referrer" if referrer else "referee",
            "minutes": 90,
            "remaining": 0 if over else 90,
            "expired": 90 if over else 0,
            "credited_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-01T00:00:06Z",
            "state": "expired" if over else "active",
        }
        if referrer:
            return [grant, *([{**grant, "referral_id": "another"}])]
        grant |= {name.removeprefix("her_"): value for name, value in self.changes.items() if name.startswith("her_")}
        if over:
            grant |= {name.removeprefix("end_"): it for name, it in self.changes.items() if name.startswith("end_")}
        copies = self.changes.get("copies", 1)
        assert isinstance(copies, int)
        return [grant] * copies


def test_a_referral_that_goes_as_it_should_is_told_in_plain_lines() -> None:
    outcome, told = _walk(Deployment())
    assert outcome.problem is None
    assert outcome.as_it_should_be
    assert outcome.document()["credited"] == {"referrer": 90, "referee": 90}
    assert "\x1b" not in told
    assert "http://ui.example/namespaces/default/workflows/referral-r1" in told
    assert "90 of 90 minutes" in told


def test_the_dashboard_can_be_opened_while_minutes_are_there_and_again_after_the_walk() -> None:
    outcome, told = _walk(Deployment())
    credited, opens, expired = (
        told.index(words) for words in ("both get 90", "https://public.example/portal?session=s1", "cycle is over")
    )
    assert credited < opens < expired
    # The first address may have been opened by then, and an address opens once.
    assert outcome.portal == "https://public.example/portal?session=s2"
    assert outcome.referrer is not None
    assert outcome.referrer.startswith("acct-rita-")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"copies": 2}, "2 grants"),
        ({"copies": 0}, "0 grants"),
        ({"her_credited_at": "2026-01-01T00:00:01Z"}, "different times"),
        ({"her_minutes": 89}, "89"),
        ({"her_role": "referrer"}, "another role"),
        ({"her_expires_at": "2999-01-01T00:00:00Z"}, "--cycle-seconds"),
        ({"end_remaining": 1, "end_expired": 89}, "did not all expire"),
        ({"plan": "power"}, "power"),
        ({"bonus_minutes": 300}, "300"),
        ({"stage": "refused", "reason": "a self-referral"}, "a self-referral"),
        ({"needs_attention": True}, "needs attention"),
        ({"session_ends": "2026-01-01T00:00:00Z"}, "the portal session is over"),
    ],
)
def test_a_referral_that_goes_otherwise_is_a_failure(changes: dict[str, object], complaint: str) -> None:
    outcome, _ = _walk(Deployment(**changes))
    assert outcome.problem is not None
    assert complaint in outcome.problem
    assert not outcome.as_it_should_be


def test_on_a_terminal_the_story_is_shown_with_the_minutes_and_the_link() -> None:
    written = StringIO()
    console = Console(file=written, force_terminal=True, width=160)
    display = LiveDisplay(console)
    target = Target("http://starter.example", "key", "whsec_secret", "http://ui.example")
    with display.live:
        walk_referral(target, "pro", 6, display, lambda _: None, httpx.MockTransport(Deployment()))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\]8;[^\x1b]*\x1b\\", "", written.getvalue())
    for part in ("credited", "settled", "Rita", "Fred", "90 of 90 minutes expired", "/workflows/referral-r1"):
        assert part in shown


def test_plain_lines_do_not_repeat_what_has_not_changed() -> None:
    written = StringIO()
    display = PlainDisplay(Console(file=written))
    for _ in range(3):
        display.minutes([])
    assert written.getvalue() == ""


def test_an_event_is_signed_as_stripe_signs_and_has_the_newest_shape() -> None:
    subscription = Subscription("cus_1", "pro")
    body, headers = signed(subscription.paid(100, 200, 150, renewal=False), "whsec_secret")
    event = stripe.Webhook.construct_event(body, headers["Stripe-Signature"], "whsec_secret")
    assert event["api_version"] == stripe.api_version
    invoice = event["data"]["object"]
    assert invoice["parent"]["subscription_details"]["subscription"] == subscription.id
    assert "subscription" not in invoice
    line = invoice["lines"]["data"][0]
    assert line["pricing"]["price_details"]["price"] == "price_pro"
    assert (line["period"]["start"], line["period"]["end"]) == (100, 200)
    created = subscription.created(100, 200)["data"]["object"]
    assert "current_period_end" not in created
    assert created["items"]["data"][0]["current_period_end"] == 200
