"""The real programs, as processes, on real servers: killed between every two steps, within steps, and at random."""

import asyncio
import json
import math
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import select

from ledger.tables import entry, stripe_event
from program.referral import Role, Stage
from runtime.settings import PROJECT
from tests.conftest import free_port
from tests.http_support import (
    API_KEYS,
    IDENTITY_HASH_KEY,
    IPHONE,
    STRIPE_SECRETS,
    TOKEN_SECRETS,
    Http,
    environment,
    paid,
    person,
)
from tests.support import MONTH, DatabaseUrls, Member, World, until

START_SECONDS = 60.0
USUAL_START_SECONDS = 4.0
RECOVERY_SECONDS = 60.0
"""How long a run may take to go on after its worker was killed: Temporal waits for an answer for ten seconds."""

WORKER = ("worker.py",)
STARTER = ("-m", "starter")


class Program:
    """One of the programs, as a process."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._arguments = arguments
        self._environment = {"PATH": os.environ["PATH"], **environment}
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **changes: str) -> None:
        """Start it, and do not wait for it."""
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, *self._arguments],
                cwd=PROJECT,
                env=self._environment | changes,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def lines(self) -> list[str]:
        """What it has written, in all its lives."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def assert_running(self) -> None:
        """Hold that it has not ended by itself."""
        assert self._process is not None
        assert self._process.poll() is None, "\n".join(self.lines[-20:])

    def kill(self) -> None:
        """End it without a word of warning."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as an operator does."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None


class Stack(Http):
    """The starter and the worker as processes, and everybody who calls them."""

    def __init__(self, client: httpx.AsyncClient, world: World, starter: Program, worker: Program) -> None:
        super().__init__(client)
        self.world = world
        self.starter = starter
        self.worker = worker
        self.slowest_start = 0.0
        self.personal: set[str] = {*API_KEYS, *STRIPE_SECRETS, *TOKEN_SECRETS, IDENTITY_HASH_KEY, "203.0.113.7"}

    async def start_worker(self) -> None:
        """Start the worker, and wait until it works."""
        lives, began = self._lives(), time.monotonic()
        self.worker.start()

        async def look() -> int:
            self.worker.assert_running()
            return self._lives()

        await until(look, lambda seen: seen > lives, START_SECONDS)
        self.slowest_start = max(self.slowest_start, time.monotonic() - began)

    @property
    def slow(self) -> int:
        """How many seconds longer the worker takes to start than on a machine that does little else."""
        return max(0, math.ceil(self.slowest_start - USUAL_START_SECONDS))

    def _lives(self) -> int:
        return sum('"worker started"' in line for line in self.worker.lines)

    async def start_starter(self, **changes: str) -> None:
        """Start the starter, and wait until it answers."""
        self.starter.start(**changes)

        async def look() -> bool:
            self.starter.assert_running()
            try:
                return (await self.send("GET", "/healthz")).status_code == 200
            except httpx.TransportError:
                return False

        await until(look, bool, START_SECONDS)

    async def subscriber_in_grace(self) -> Member:
        """A referrer whose last period has just ended: its renewal is on its way, so it is a paid subscriber still."""
        rita = await self.account(self.known(person("rita", created_at=datetime.now(UTC) - timedelta(days=400))))
        end = datetime.now(UTC) - timedelta(minutes=1)
        await self.deliver(*paid(rita, end - MONTH, end))
        return rita

    def known(self, member: Member) -> Member:
        """A member whose personal data must be seen nowhere."""
        self.personal.add(member.email)
        return member

    async def visit(self, code: str) -> str:
        """A person's click; the token."""
        token = (await self.click(code)).token
        self.personal.add(token)
        return token

    async def deliver(self, *events: dict[str, Any]) -> None:
        """Let Stripe deliver events, each of which must be taken."""
        for event in events:
            answer = await self.stripe(event)
            assert answer.status_code == 200, answer.text

    async def both_pay(self, rita: Member, fred: Member, first: float, second: float) -> None:
        """Let both pay for cycles that end in so many seconds."""
        now = datetime.now(UTC)
        _, renewal = paid(
            rita, now - timedelta(minutes=1), now + timedelta(seconds=first), reason="subscription_cycle", paid_at=now
        )
        await self.deliver(renewal, *paid(fred, now, now + timedelta(seconds=second)))

    async def entries(self, referral_id: str) -> list[tuple[str, str, int]]:
        """The journal of a referral's bonuses: role, kind, minutes."""
        async with self.world.database.transaction() as transaction:
            rows = await transaction.execute(
                select(entry.c.grant_id, entry.c.kind, entry.c.delta).where(entry.c.grant_id.startswith(referral_id))
            )
            return sorted((row.grant_id.rpartition("-")[2], row.kind, row.delta) for row in rows)

    async def assert_settled_once(self, referral_id: str, rita: Member, fred: Member, minutes: int = 90) -> None:
        """Hold that both were credited once, alike and together, and that all of it expired, once."""
        shown = await self.reaches(referral_id, "settled", seconds=RECOVERY_SECONDS)
        assert (shown["bonus_minutes"], shown["needs_attention"]) == (minutes, False)
        assert await self.entries(referral_id) == [
            ("referee", "credit", minutes),
            ("referee", "expiry", -minutes),
            ("referrer", "credit", minutes),
            ("referrer", "expiry", -minutes),
        ]
        times = set()
        for member in (rita, fred):
            (grant,) = [grant for grant in (await self.bonus(member))["grants"] if grant["referral_id"] == referral_id]
            assert (grant["minutes"], grant["remaining"], grant["expired"]) == (minutes, 0, minutes)
            assert grant["state"] == "expired"
            times.add(grant["credited_at"])
        assert times == {shown["credited_at"]}
        assert await self.world.story(referral_id) == [Stage.SIGNED_UP, Stage.CREDITED, Stage.SETTLED]
        state = await asyncio.wait_for(self.world.outcome(referral_id), RECOVERY_SECONDS)
        assert {role.value: bonus.expired_minutes for role, bonus in state.bonuses.items()} == {
            "referrer": minutes,
            "referee": minutes,
        }

    async def assert_impersonal(self, *referral_ids: str) -> None:
        """Hold that no log line and nothing that Temporal keeps names a person or tells a secret (rule 24)."""
        lines = [*self.starter.lines, *self.worker.lines]
        assert any('"event handled"' in line for line in lines), "else this looks in the wrong place"
        assert any(referral_ids[0] in line for line in lines)
        for line in lines:
            document = json.loads(line)
            assert document["program"] in ("starter", "worker")
            assert document["level"] in ("info", "warning", "error")
        written = "\n".join(lines)
        for referral_id in referral_ids:
            handle = self.world.handle(referral_id)
            written += (await handle.fetch_history()).to_json()
            description = await handle.describe()
            written += str(description.raw_description) + str(await description.memo())
        names = {address.partition("@")[0] for address in self.personal if "@" in address}
        told = {secret for secret in self.personal | names if secret in written}
        assert not told


@asynccontextmanager
async def stack_on(world: World, urls: DatabaseUrls, address: str, folder: Path) -> AsyncIterator[Stack]:
    """Both programs on a test's servers; the starter runs, the worker does not yet."""
    port = free_port()
    settings = environment(urls, world.task_queue, address, port)
    starter = Program(STARTER, settings, folder / "starter.log")
    worker = Program(WORKER, settings, folder / "worker.log")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=15) as client:
        stack = Stack(client, world, starter, worker)
        try:
            await stack.start_starter()
            yield stack
        finally:
            worker.kill()
            starter.kill()


@pytest.fixture
async def stack(
    live_idle_world: World, database_urls: DatabaseUrls, dev_server: str, tmp_path: Path
) -> AsyncIterator[Stack]:
    async with stack_on(live_idle_world, database_urls, dev_server, tmp_path) as stack:
        yield stack


async def test_a_worker_killed_between_every_two_steps_loses_and_doubles_nothing(stack: Stack) -> None:
    rita = await stack.subscriber_in_grace()
    code = await stack.link(rita)
    await stack.start_worker()

    stack.worker.kill()  # before the click
    token = await stack.visit(code)
    await stack.start_worker()

    stack.worker.kill()  # after the click, before the signup
    fred = stack.known(person("fred"))
    referral_id = await stack.signed_up(fred, referral_token=token, client_ip="203.0.113.7", user_agent=IPHONE)
    assert (await stack.referral(referral_id))["stage"] == "clicked"
    await stack.start_worker()  # after the signup, before its attribution
    await stack.reaches(referral_id, "signed_up", seconds=RECOVERY_SECONDS)

    stack.worker.kill()  # after the attribution, before the payment
    await stack.account(fred, first_name="Frederick")
    stack.personal.add("Frederick")
    await stack.both_pay(rita, fred, 14 + 2 * stack.slow, 30 + 6 * stack.slow)
    assert (await stack.referral(referral_id))["stage"] == "signed_up"
    assert not (await stack.bonus(fred))["grants"]
    await stack.start_worker()  # after the payment, before the credit
    await stack.reaches(referral_id, "credited", seconds=RECOVERY_SECONDS)
    assert (await stack.bonus(rita))["available"] == (await stack.bonus(fred))["available"] == 90

    stack.worker.kill()  # after the credit, before the first expiry
    await stack.start_worker()
    # Not merely in the ledger: the run has heard of it.
    heard = await until(
        lambda: stack.world.state(referral_id),
        lambda state: Role.REFERRER in state.bonuses and state.bonuses[Role.REFERRER].expired_minutes is not None,
        RECOVERY_SECONDS + 2 * stack.slow,
    )

    stack.worker.kill()  # after the first expiry, before the second
    assert heard.bonuses[Role.REFEREE].expired_minutes is None, "the machine is too slow for this test"
    shown = (await stack.referral(referral_id))["expires_at"]["referee"]
    await until(_now, lambda now: now > datetime.fromisoformat(shown), 30 + 6 * stack.slow + RECOVERY_SECONDS)
    assert (await stack.referral(referral_id))["stage"] == "credited"
    await stack.start_worker()  # after the second end, before the referral is settled
    await stack.assert_settled_once(referral_id, rita, fred)

    await stack.deliver(*paid(fred, datetime.now(UTC), datetime.now(UTC) + MONTH))
    await stack.assert_settled_once(referral_id, rita, fred)
    await stack.assert_impersonal(referral_id)


async def _now() -> datetime:
    return datetime.now(UTC)


async def test_a_worker_killed_within_a_step_loses_and_doubles_nothing(
    stack: Stack, database_urls: DatabaseUrls
) -> None:
    """Three referrals, each held within another step: attribution, credit, expiry. Then the worker is killed."""
    await stack.start_worker()
    pairs: dict[str, tuple[Member, Member, str]] = {}
    for step in ("attribution", "credit", "expiry"):
        rita = await stack.subscriber_in_grace()
        fred = await stack.account(person("fred"))
        token = await stack.visit(await stack.link(rita))
        pairs[step] = rita, fred, token
    referral_ids = {}
    for step in ("credit", "expiry"):
        rita, fred, token = pairs[step]
        referral_ids[step] = await stack.signed_up(fred, referral_token=token)
        await stack.reaches(referral_ids[step], "signed_up")
    rita, fred, _ = pairs["expiry"]
    await stack.both_pay(rita, fred, 4 + stack.slow, 5 + stack.slow)
    await stack.reaches(referral_ids["expiry"], "credited", "settled")
    url = database_urls.app.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as watch, psycopg.connect(url) as other:
        # Each step begins by locking both accounts, and waits for whoever has one of them.
        referrers = [rita.account_id for rita, _, _ in pairs.values()]
        other.execute("SELECT FROM account WHERE account_id = ANY(%s) FOR NO KEY UPDATE", (referrers,))

        async def waiting() -> int:
            row = watch.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone()
            return int(row[0]) if row else 0

        # All within two seconds: a local step that takes longer becomes an activity of its own.
        await until(waiting, lambda seen: seen >= 1)
        rita, fred, token = pairs["attribution"]
        referral_ids["attribution"] = await stack.signed_up(fred, referral_token=token)
        _, fred, _ = pairs["credit"]
        await stack.deliver(*paid(fred, datetime.now(UTC), datetime.now(UTC) + MONTH))
        await until(waiting, lambda seen: seen >= 3)
        stack.worker.kill()
        other.rollback()
        await until(waiting, lambda seen: seen == 0)
    await stack.start_worker()
    await stack.reaches(referral_ids["attribution"], "signed_up", seconds=RECOVERY_SECONDS)
    await stack.reaches(referral_ids["credit"], "credited", seconds=RECOVERY_SECONDS)
    rita, fred, _ = pairs["expiry"]
    await stack.assert_settled_once(referral_ids["expiry"], rita, fred)
    assert await stack.entries(referral_ids["credit"]) == [("referee", "credit", 90), ("referrer", "credit", 90)]
    assert await stack.world.story(referral_ids["attribution"]) == [Stage.SIGNED_UP]


async def test_a_worker_killed_at_random_moments_loses_and_doubles_nothing(stack: Stack) -> None:
    seed = secrets.randbelow(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311
    await stack.start_worker()
    referrers = [await stack.subscriber_in_grace() for _ in range(2)]
    codes = [await stack.link(rita) for rita in referrers]
    over = asyncio.Event()

    async def kill_again_and_again() -> None:
        for _ in range(5):
            await asyncio.sleep(chance.uniform(0.1, 2.5))
            stack.worker.kill()
            await stack.start_worker()
        over.set()

    async def refer(number: int) -> tuple[str, Member, Member]:
        pauses = [chance.uniform(0, 3) for _ in range(3)]
        rita, code = referrers[number % 2], codes[number % 2]
        fred = stack.known(person("fred"))
        token = await stack.visit(code)
        await asyncio.sleep(pauses[0])
        steps: list[Callable[[], Awaitable[object]]] = [
            lambda: stack.signed_up(fred, referral_token=token),
            lambda: stack.account(fred),
            lambda: stack.both_pay(rita, fred, 28 + 5 * stack.slow, 29 + 5 * stack.slow + number % 3),
        ]
        chance.shuffle(steps)
        referral_ids = []
        for step, pause in zip(steps, pauses, strict=True):
            referral_ids.append(await step())
            await asyncio.sleep(pause)
        (referral_id,) = [each for each in referral_ids if isinstance(each, str)]
        return referral_id, rita, fred

    *referred, _ = await asyncio.gather(*(refer(number) for number in range(8)), kill_again_and_again())
    assert over.is_set()
    for outcome in referred:
        assert outcome is not None
        referral_id, rita, fred = outcome
        await stack.reaches(referral_id, "settled", seconds=2 * RECOVERY_SECONDS + 5 * stack.slow)
        await stack.assert_settled_once(referral_id, rita, fred)
    for rita in referrers:
        summary = await stack.summary(rita)
        assert (summary["invited"], summary["subscribed"], summary["bonus_minutes_earned"]) == (4, 4, 360)
        assert summary["bonus_minutes_available"] == 0
    await stack.assert_impersonal(*(outcome[0] for outcome in referred if outcome))


async def test_a_starter_killed_between_storing_an_event_and_its_answer_is_sent_it_again(stack: Stack) -> None:
    await stack.start_worker()
    rita = await stack.subscriber()
    fred = stack.known(person("fred"))
    referral_id = await stack.signed_up(fred, referral_token=await stack.visit(await stack.link(rita)))
    await stack.account(fred)
    await stack.reaches(referral_id, "signed_up")
    seen, payment = paid(fred, datetime.now(UTC), datetime.now(UTC) + MONTH)
    await stack.deliver(seen)
    stack.starter.kill()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        # It stores the event, and then waits for a Temporal that never answers.
        await stack.start_starter(TEMPORAL_ADDRESS=f"127.0.0.1:{silent.getsockname()[1]}")
        delivery = asyncio.ensure_future(stack.stripe(payment))

        async def stored() -> list[bool]:
            async with stack.world.database.transaction() as transaction:
                rows = await transaction.execute(
                    select(stripe_event.c.signalled_at).where(stripe_event.c.event_id == payment["id"])
                )
                return [row.signalled_at is None for row in rows]

        await until(stored, lambda seen: seen == [True])
        stack.starter.kill()
        with pytest.raises(httpx.TransportError):
            await delivery

    await stack.start_starter()
    assert (await stack.referral(referral_id))["stage"] == "signed_up"
    await stack.deliver(payment)
    shown = await stack.reaches(referral_id, "credited")
    assert shown["bonus_minutes"] == 90
    assert await stored() == [False]
    await stack.deliver(payment)
    assert await stack.entries(referral_id) == [("referee", "credit", 90), ("referrer", "credit", 90)]
    stack.starter.stop()
    stack.worker.stop()
    await stack.assert_impersonal(referral_id)


async def _ended(arguments: Sequence[str], settings: dict[str, str], **changes: str | None) -> tuple[int, str, str]:
    """How a program ends that cannot run: its exit status, and what it wrote."""
    values = {"PATH": os.environ["PATH"], **settings}
    for name, value in changes.items():
        values.pop(name, None)
        if value is not None:
            values[name] = value
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=PROJECT,
        env=values,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, error = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


async def test_a_program_that_cannot_run_says_why_in_one_line_and_fails(
    database_urls: DatabaseUrls, dev_server: str, tmp_path: Path
) -> None:
    plans = tmp_path / "plans.toml"
    plans.write_text('[[plan]]\nid = "pro"\nname = "Pro"\nminutes = 0\nprice_cents = 2900\nlookup_keys = ["pro"]\n')
    settings = environment(database_urls, "nobody-listens", dev_server, free_port())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        several = {
            "REFERRALS_API_KEYS": None,
            "REFERRALS_STRIPE_WEBHOOK_SECRETS": " , ",
            "REFERRALS_TOKEN_SECRETS": "short",
            "REFERRALS_IDENTITY_HASH_KEY": "",
            "REFERRALS_ATTRIBUTION_WINDOW": "soon",
            "REFERRALS_DATABASE_URL": "mysql://x",
        }
        no_minutes = ["minutes must be a whole number of at least 1", str(plans)]
        cases: list[tuple[Sequence[str], dict[str, str | None], list[str]]] = [
            (STARTER, dict(several), list(several)),
            (WORKER, {"REFERRALS_DATABASE_URL": None}, ["REFERRALS_DATABASE_URL"]),
            (WORKER, {"REFERRALS_DEPLOYMENT_NAME": "referrals"}, ["REFERRALS_BUILD_ID"]),
            (WORKER, {"REFERRALS_PLANS_FILE": str(plans)}, no_minutes),
            (STARTER, {"REFERRALS_PLANS_FILE": str(plans)}, no_minutes),
            (STARTER, {"REFERRALS_PLANS_FILE": str(tmp_path / "none.toml")}, ["No such file", "none.toml"]),
            (WORKER, {"TEMPORAL_ADDRESS": f"127.0.0.1:{free_port()}"}, ["connect"]),
            (STARTER, {"REFERRALS_PORT": str(taken.getsockname()[1])}, ["address already in use"]),
        ]
        answers = await asyncio.gather(*(_ended(program, settings, **changed) for program, changed, _ in cases))
    for (program, changed, reasons), (status, out, error) in zip(cases, answers, strict=True):
        case = f"{program} {changed}: {error}"
        assert status not in (0, -signal.SIGKILL), case
        assert out == "", case
        assert "Traceback" not in error, case
        (reason,) = [line for line in error.splitlines() if json.loads(line)["level"] == "error"]
        for each in reasons:
            assert each in reason, case
        for secret in (*API_KEYS, *STRIPE_SECRETS, *TOKEN_SECRETS, IDENTITY_HASH_KEY, "short", "mysql"):
            assert secret not in error, case


async def test_told_to_stop_the_programs_stop(stack: Stack) -> None:
    await stack.start_worker()
    worker = stack.worker._process
    assert worker is not None
    stack.worker.stop()
    assert worker.returncode == 0
    starter = stack.starter._process
    assert starter is not None
    stack.starter.stop()
    assert starter.returncode in (0, -signal.SIGTERM)
    assert not any("Traceback" in line for line in [*stack.worker.lines, *stack.starter.lines])
