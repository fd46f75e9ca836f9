"""What the backend is told, as it arrives: at a real HTTP server, verified with the `standardwebhooks` package."""

import asyncio
import json
import os
import re
import sys
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from standardwebhooks import Webhook, WebhookVerificationError
from structlog.testing import capture_logs
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.worker import WorkerDeploymentConfig

from activities.delivery import Deliveries, Endpoint, http_client
from devstack.ports import free_port
from ledger.database import Database
from program.notifications import STARTED_BY_THEN, Kind
from runtime.settings import PROJECT
from tests.http_support import environment
from tests.stripe_events import unique
from tests.support import Books, DatabaseUrls, World, until
from tests.test_versioning import make_current, release
from worker import SENT_AT_ONCE, deployment
from workflows.deliveries import run_id
from workflows.delivery_client import DeliveryRuns
from workflows.jobs import REMINDERS, SWEEP, upkeep_queue

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)

NEW, OLD, FOREIGN = (f"whsec_{b64encode(bytes([number] * 32)).decode()}" for number in (1, 2, 3))
KEY = "an-endpoint-s-own-key"
"""Part of the receivers' addresses, and nobody else's business."""


@dataclass(frozen=True)
class Request:
    """What a receiver was sent."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> dict[str, Any]:
        """What it says, if it is signed with that secret."""
        said: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return said


class Receiver:
    """The backend: takes what it is sent, unless told to answer otherwise."""

    def __init__(self) -> None:
        self.received: list[Request] = []
        self.answers: list[int] = []
        """The first ones that it gives; 200 afterwards."""
        self.always = 200
        self.headers: dict[str, str] = {}
        self.let_go = threading.Event()
        self.let_go.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append(Request(self.path, headers, body))
                receiver.let_go.wait(60)
                self.send_response(receiver.answers.pop(0) if receiver.answers else receiver.always)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing on the terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def endpoint(self) -> Endpoint:
        """Where it is, and both secrets that it may know."""
        return Endpoint(self.url, [NEW, OLD])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/told?key={KEY}"

    async def gets(self, number: int) -> list[Request]:
        """Wait for that many requests in all."""

        async def look() -> list[Request]:
            return list(self.received)

        return await until(look, lambda requests: len(requests) >= number)

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def make_receiver() -> Iterator[Callable[[], Receiver]]:
    receivers: list[Receiver] = []

    def make() -> Receiver:
        receivers.append(Receiver())
        return receivers[-1]

    yield make
    for receiver in receivers:
        receiver.close()


@pytest.fixture
def backend(make_receiver: Callable[[], Receiver]) -> Receiver:
    return make_receiver()


class Post:
    """What there is to tell, and the runs that deliver it."""

    def __init__(self, world: World, database: Database, runs: DeliveryRuns, url: str) -> None:
        self.world = world
        self.books = Books(database, world.plans, world.clock)
        self.client = world.environment.client
        self.runs = runs
        self.url = url

    @asynccontextmanager
    async def workers(
        self, versions: WorkerDeploymentConfig | None = None, **endpoints: Endpoint
    ) -> AsyncIterator[None]:
        """Have workers deliver to these endpoints."""
        async with AsyncExitStack() as stack:
            deliveries = Deliveries(self.world.database, endpoints, await stack.enter_async_context(http_client()))
            for name in endpoints:
                await stack.enter_async_context(self.world.courier(name, deliveries))
            await stack.enter_async_context(
                self.world.upkeep_worker(deliveries=deliveries, runs=self.runs, versions=versions)
            )
            yield

    async def credited(self) -> list[str]:
        """A referral up to its credit, which is three messages; gives their ids."""
        before = await self.message_ids()
        await self.books.credited(await self.books.subscriber(started=DAY), await self.books.someone())
        return await self._announced(before)

    async def signed_up(self) -> str:
        """A referral up to its signup, which is one message; gives its id."""
        before = await self.message_ids()
        await self.books.sign_up(await self.books.subscriber(), await self.books.someone())
        [message_id] = await self._announced(before)
        return message_id

    async def _announced(self, before: Sequence[str]) -> list[str]:
        await self.runs.settle()
        return [each for each in await self.message_ids() if each not in before]

    async def message_ids(self) -> list[str]:
        """Of all messages that there are."""
        return [row[0] for row in await self.books.rows("SELECT message_id FROM outbox")]

    def run(self, message_id: str) -> WorkflowHandle[Any, list[str]]:
        """The delivery of a message."""
        return self.client.get_workflow_handle(run_id(message_id), result_type=list[str])

    async def result(self, message_id: str) -> list[str]:
        """How the delivery of a message ends; time runs ahead until it does, where a server can do that."""
        skip = getattr(self.world.environment, "time_skipping_unlocked", nullcontext)
        async with skip():
            return await self.run(message_id).result()

    async def job(self, workflow: str) -> None:
        """Have done what a Schedule has done."""
        queue = upkeep_queue(self.world.task_queue)
        await self.client.execute_workflow(workflow, id=f"{workflow}-{queue}", task_queue=queue)

    async def outcome(self, message_id: str) -> dict[str, tuple[str, str | None]]:
        """How the delivery to each endpoint ended, and why."""
        rows = await self.books.rows(
            "SELECT endpoint, state, problem FROM delivery WHERE message_id = :message", message=message_id
        )
        return {endpoint: (state, problem) for endpoint, state, problem in rows}

    async def is_over(self, message_id: str) -> bool:
        """Whether nothing looks after the message any more."""
        [row] = await self.books.rows("SELECT due_at FROM outbox WHERE message_id = :message", message=message_id)
        return row == (None,)

    async def over(self, *message_ids: str) -> None:
        """Wait for that."""
        for message_id in message_ids:

            async def look(message_id: str = message_id) -> bool:
                return await self.is_over(message_id)

            await until(look, bool)


@asynccontextmanager
async def announcing(world: World, urls: DatabaseUrls) -> AsyncIterator[Post]:
    runs = DeliveryRuns(world.environment.client, world.task_queue, timeout=timedelta(seconds=10))
    database = Database(urls.app, offset=world.clock.offset, announce=runs.announce)
    try:
        yield Post(world, database, runs, urls.app)
        await runs.settle()
    finally:
        await database.close()


@pytest.fixture
async def post(live_idle_world: World, database_urls: DatabaseUrls) -> AsyncIterator[Post]:
    """On the real server, in real time."""
    async with announcing(live_idle_world, database_urls) as post:
        yield post


@pytest.fixture
async def patient_post(idle_world: World, database_urls: DatabaseUrls) -> AsyncIterator[Post]:
    """Where the days between attempts pass at once."""
    async with announcing(idle_world, database_urls) as post:
        yield post


def ids(requests: Sequence[Request]) -> list[str]:
    return sorted(request.id for request in requests)


async def test_rule_6_what_happened_arrives_by_itself_signed_with_the_old_and_the_new_secret(
    post: Post, backend: Receiver
) -> None:
    async with post.workers(backend=backend.endpoint):
        told = await post.credited()
        requests = await backend.gets(3)
        await post.over(*told)
    assert ids(requests) == sorted(told)
    rows = await post.books.rows("SELECT message_id, type, created_at, data FROM outbox")
    written = {row[0]: row[1:] for row in rows}
    for request in requests:
        said = request.verified(NEW)
        assert said == request.verified(OLD)
        kind, at, data = written[request.id]
        assert (said["type"], datetime.fromisoformat(said["timestamp"]), said["data"]) == (kind, at, data)
        assert request.headers["content-type"] == "application/json"
        with pytest.raises(WebhookVerificationError, match="No matching signature"):
            request.verified(FOREIGN)
        forged = Request(request.path, request.headers, request.body.replace(b'"data"', b'"date"'))
        with pytest.raises(WebhookVerificationError, match="No matching signature"):
            forged.verified(NEW)
    bonuses = [said for request in requests if (said := request.verified(NEW))["type"] == "bonus.credited"]
    assert {(said["data"]["role"], said["data"]["minutes"]) for said in bonuses} == {("referrer", 90), ("referee", 90)}
    assert await post.outcome(told[0]) == {"backend": ("delivered", None)}


async def test_rule_24_nothing_personal_is_sent_and_no_address_is_written_down(post: Post, backend: Receiver) -> None:
    referrer, friend = await post.books.subscriber(), await post.books.someone()
    dead = Endpoint(f"http://127.0.0.1:{free_port()}/?key={KEY}", [NEW])
    with capture_logs() as lines:
        async with post.workers(backend=backend.endpoint, dead=dead):
            await post.books.credited(referrer, friend)
            requests = await backend.gets(3)

            async def tried() -> list[Any]:
                return [line for line in lines if line.get("endpoint") == "dead"]

            await until(tried, lambda lines: len(lines) >= 3)
            histories = [await post.run(request.id).fetch_history() for request in requests]

            # A failure that is tried again stands there, and not in the history yet.
            async def described() -> list[Any]:
                return [await post.run(request.id).describe() for request in requests]

            shown = await until(
                described, lambda found: any("no answer" in str(each.raw_description) for each in found)
            )
    for member in (referrer, friend):
        for personal in (member.email, member.customer_id, member.subscription_id):
            assert personal not in str(requests)
    written = str(lines) + "".join(history.to_json() for history in histories)
    written += "".join(str(description.raw_description) for description in shown)
    for hidden in (KEY, "127.0.0.1", NEW, referrer.email, friend.email):
        assert hidden not in written


async def test_an_endpoint_that_stumbles_is_sent_the_same_again(patient_post: Post, backend: Receiver) -> None:
    post, backend.answers = patient_post, [500, 302, 429, 500, 500]
    async with post.workers(backend=backend.endpoint):
        message_id = await post.signed_up()
        assert await post.result(message_id) == ["backend"]
    assert [request.id for request in backend.received] == [message_id] * 6
    assert len({request.body for request in backend.received}) == 1
    assert [request.verified(OLD)["type"] for request in backend.received] == ["referral.signed_up"] * 6
    assert await post.outcome(message_id) == {"backend": ("delivered", None)}


async def test_what_an_endpoint_never_takes_is_given_up_after_days_for_all_to_see(
    patient_post: Post, backend: Receiver
) -> None:
    post, backend.always = patient_post, 500
    async with post.workers(backend=backend.endpoint):
        with capture_logs() as lines:
            message_id = await post.signed_up()
            with pytest.raises(WorkflowFailureError) as failed:
                await post.result(message_id)
        assert "backend" in str(failed.value.cause)
        assert "the endpoint answered 500" in str(failed.value.cause)
        assert 10 <= len(backend.received) <= 12
        [[patience]] = await post.books.rows("SELECT at - created_at FROM delivery JOIN outbox USING (message_id)")
        assert 2 * DAY < patience < 4 * DAY
        assert await post.outcome(message_id) == {"backend": ("given_up", "the endpoint answered 500")}
        [line] = [line for line in lines if line["event"] == "delivery given up"]
        assert (line["log_level"], line["endpoint"], line["message_id"]) == ("error", "backend", message_id)
        assert await post.is_over(message_id), "the sweep leaves it alone"


async def test_an_endpoint_that_asks_for_time_is_given_it(post: Post, backend: Receiver) -> None:
    backend.answers, backend.headers = [503], {"retry-after": "7200"}
    async with post.workers(backend=backend.endpoint):
        message_id = await post.signed_up()

        async def waits() -> list[timedelta]:
            pending = (await post.run(message_id).describe()).raw_description.pending_activities
            return [each.current_retry_interval.ToTimedelta() for each in pending if each.attempt == 2]

        [wait] = await until(waits, bool)
        assert 2 * HOUR <= wait < 3 * HOUR
    assert len(backend.received) == 1


async def test_an_endpoint_that_does_not_answer_keeps_no_other_waiting(
    post: Post, make_receiver: Callable[[], Receiver]
) -> None:
    living, hanging = make_receiver(), make_receiver()
    hanging.let_go.clear()
    dead = Endpoint(f"http://127.0.0.1:{free_port()}/", [NEW])
    async with post.workers(hanging=hanging.endpoint, dead=dead, living=living.endpoint):
        told = [*await post.credited(), *await post.credited(), *await post.credited()]
        assert len(told) > 2 * SENT_AT_ONCE
        assert ids(await living.gets(len(told))) == sorted(told)
        assert len(await hanging.gets(SENT_AT_ONCE)) == SENT_AT_ONCE

        async def taken() -> list[dict[str, tuple[str, str | None]]]:
            return [await post.outcome(message_id) for message_id in told]

        # Those that were delivered say so while the others are still being tried.
        await until(taken, lambda outcomes: all(each == {"living": ("delivered", None)} for each in outcomes))
        assert len(hanging.received) == SENT_AT_ONCE
        assert not any([await post.is_over(message_id) for message_id in told])
        hanging.let_go.set()
        assert ids(await hanging.gets(len(told))) == sorted(told)


async def test_what_a_crash_left_between_the_commit_and_the_start_is_delivered_by_the_sweep_once(
    live_idle_world: World, database_urls: DatabaseUrls, backend: Receiver
) -> None:
    def crash(_: Sequence[str]) -> None:
        raise SystemExit("killed right after the commit")

    world = live_idle_world
    database = Database(database_urls.app, offset=world.clock.offset, announce=crash)
    post = Post(world, world.database, DeliveryRuns(world.environment.client, world.task_queue), database_urls.app)
    books = Books(database, world.plans, world.clock)
    referrer, friend = await books.subscriber(), await books.someone()
    click = await books.click(referrer)
    await books.reserve(click, referrer, friend)
    with pytest.raises(SystemExit):
        await books.attribute(click.referral_id)
    await database.close()
    [[message_id]] = await post.books.rows("SELECT message_id FROM outbox")

    async with post.workers(backend=backend.endpoint):
        await post.job(SWEEP)
        assert backend.received == [], "whoever wrote it may be about to deliver it"
        world.clock.advance(STARTED_BY_THEN)
        await post.job(SWEEP)
        assert ids(await backend.gets(1)) == [message_id]
        await post.over(message_id)
        world.clock.advance(2 * DAY)
        await post.job(SWEEP)
    assert ids(backend.received) == [message_id]


async def test_a_release_takes_the_runs_and_whichever_is_up_sends(post: Post, backend: Receiver) -> None:
    name = unique("referrals")
    async with post.workers(deployment(release(name, "1")), backend=backend.endpoint):
        await make_current(post.world, name, "1")
        message_id = await post.signed_up()
        assert await post.result(message_id) == ["backend"]
    assert ids(backend.received) == [message_id]


async def test_a_delivery_that_somebody_ended_is_taken_up_by_the_sweep(post: Post, backend: Receiver) -> None:
    backend.answers = [500]
    async with post.workers(backend=backend.endpoint):
        message_id = await post.signed_up()
        await backend.gets(1)
        await post.run(message_id).terminate("by mistake")
        post.world.clock.advance(DAY + HOUR)
        await post.job(SWEEP)
        await post.over(message_id)
    assert ids(backend.received) == [message_id] * 2


async def test_an_endpoint_that_is_gone_is_sent_nothing_more_until_somebody_asks(post: Post, backend: Receiver) -> None:
    backend.always = 410
    async with post.workers(backend=backend.endpoint):
        first = await post.signed_up()
        await post.over(first)
        second = await post.signed_up()
        await post.over(second)
        assert [request.id for request in backend.received] == [first]
        assert (await post.outcome(first))["backend"] == ("given_up", "the endpoint answered 410 Gone")
        assert (await post.outcome(second))["backend"] == ("given_up", "the endpoint answered 410 Gone before")

        backend.always = 200
        assert (await redeliver(post, second))[0] == 0
        await backend.gets(2)
        # Not merely arrived: it is written down that the endpoint is there again.
        assert await post.result(second) == ["backend"]
        third = await post.signed_up()
        assert [request.id for request in await backend.gets(3)] == [first, second, third]


async def test_the_documentation_shows_messages_as_they_are(post: Post, backend: Receiver) -> None:
    text = (PROJECT / "docs" / "webhooks.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+\.\w+)` \|", text, re.MULTILINE) == list(Kind)
    shown = {said["type"]: said for said in map(json.loads, re.findall(r"```json\n(.*?)```", text, re.DOTALL))}
    async with post.workers(backend=backend.endpoint):
        await post.credited()
        await post.books.sign_up(await post.books.subscriber(), await post.books.someone(age=DAY))
        told = {said["type"]: said for said in [each.verified(NEW) for each in await backend.gets(4)]}
    assert shown.keys() == {"bonus.credited", "referral.refused"}
    for kind, said in shown.items():
        assert said.keys() == told[kind].keys()
        assert said["data"].keys() == told[kind]["data"].keys()
    assert shown["referral.refused"]["data"]["reason"] == told["referral.refused"]["data"]["reason"]


async def redeliver(post: Post, *arguments: str) -> tuple[int, str]:
    """Run the console script; gives its exit status and what it said."""
    variables = {
        "PATH": os.environ["PATH"],
        "REFERRALS_DATABASE_URL": post.url.replace("+psycopg", ""),
        "REFERRALS_TASK_QUEUE": post.world.task_queue,
        "TEMPORAL_ADDRESS": post.client.service_client.config.target_host,
        "TEMPORAL_CONFIG_FILE": os.devnull,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "redeliver", *arguments),
        cwd=PROJECT,
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, said.decode()


async def test_a_message_can_be_delivered_again_by_hand_under_the_same_id(
    post: Post, make_receiver: Callable[[], Receiver]
) -> None:
    backend, crm = make_receiver(), make_receiver()
    async with post.workers(backend=backend.endpoint, crm=crm.endpoint):
        message_id = await post.signed_up()
        await post.over(message_id)

        status, said = await redeliver(post, message_id)
        assert (status, said.split()[0]) == (0, run_id(message_id)), said
        await backend.gets(2)
        await crm.gets(2)
        await post.result(message_id)

        status, said = await redeliver(post, run_id(message_id), "--endpoint", "crm", "--json")
        assert (status, json.loads(said)["run"]) == (0, run_id(message_id)), said
        await crm.gets(3)
        await post.result(message_id)
    assert (ids(backend.received), ids(crm.received)) == ([message_id] * 2, [message_id] * 3)
    assert len({request.body for request in [*backend.received, *crm.received]}) == 1
    assert [request.verified(NEW)["type"] for request in crm.received] == ["referral.signed_up"] * 3


async def test_asking_again_for_one_endpoint_ends_no_attempt_at_another(
    post: Post, make_receiver: Callable[[], Receiver]
) -> None:
    backend, crm = make_receiver(), make_receiver()
    crm.answers = [500]
    async with post.workers(backend=backend.endpoint, crm=crm.endpoint):
        message_id = await post.signed_up()
        await crm.gets(1)
        await backend.gets(1)
        assert (await redeliver(post, message_id, "--endpoint", "backend"))[0] == 0
        await backend.gets(2)
        await post.over(message_id)
    assert await post.outcome(message_id) == {"backend": ("delivered", None), "crm": ("delivered", None)}


async def test_a_message_that_nobody_knows_is_refused_by_hand(post: Post) -> None:
    status, said = await redeliver(post, "msg_" + "0" * 32)
    assert status == 1
    assert "there is no message msg_" in said
    assert "Traceback" not in said


async def test_rule_7_the_owner_of_a_bonus_hears_three_days_ahead_of_its_end_once(
    post: Post, backend: Receiver
) -> None:
    async with post.workers(backend=backend.endpoint):
        referral_id = await post.books.credited(await post.books.subscriber(started=DAY), await post.books.someone())
        await backend.gets(3)
        await post.over(*await post.message_ids())
        ends = (await post.books.referral(referral_id)).expires_at
        post.world.clock.advance(min(ends.values()) - await post.world.clock.now() - DAY)
        await post.job(REMINDERS)
        await post.job(REMINDERS)
        # This worker announces nothing.
        post.world.clock.advance(STARTED_BY_THEN)
        await post.job(SWEEP)
        said = [request.verified(NEW) for request in await backend.gets(5)]
    expiring = [each["data"] for each in said if each["type"] == "bonus.expiring"]
    assert sorted(each["role"] for each in expiring) == ["referee", "referrer"]
    assert {datetime.fromisoformat(each["expires_at"]) for each in expiring} == set(ends.values())
    assert len(backend.received) == 5


def counters_of(scraped: str) -> dict[tuple[Any, ...], float]:
    """Our own numbers of a page for Prometheus, by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items() - {("service_name", "temporal-core-sdk")})): sample.value
        for family in text_string_to_metric_families(scraped)
        for sample in family.samples
        if sample.name.startswith("referrals_")
    }


async def test_rule_6_a_worker_s_process_tells_the_backend_of_a_credit(
    live_idle_world: World, database_urls: DatabaseUrls, dev_server: str, backend: Receiver, tmp_path: Path
) -> None:
    world, log, metrics = live_idle_world, tmp_path / "log", f"127.0.0.1:{free_port()}"
    variables = {
        "PATH": os.environ["PATH"],
        **environment(database_urls, world.task_queue, dev_server, free_port()),
        "REFERRALS_DELIVERY_ENDPOINTS": f"backend={backend.url},dead=http://127.0.0.1:{free_port()}/",
        "REFERRALS_DELIVERY_SECRETS": f"{NEW},{OLD}",
        "REFERRALS_METRICS_ADDRESS": metrics,
        "TEMPORAL_CONFIG_FILE": os.devnull,
    }
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "worker.py"), cwd=PROJECT, env=variables, stdout=output, stderr=output
        )
    try:
        referrer = await world.subscriber(started=DAY)
        friend = await world.member("friend")
        click = await world.click(referrer)
        await world.sign_up(click, referrer, friend)
        await world.pay(friend)
        said = [request.verified(OLD) for request in await backend.gets(3)]
        queue = upkeep_queue(world.task_queue)
        await world.environment.client.execute_workflow(SWEEP, id=f"sweep-{queue}", task_queue=queue)
        async with httpx.AsyncClient(timeout=60) as client:

            async def scrape() -> dict[tuple[Any, ...], float]:
                return counters_of((await client.get(f"http://{metrics}/metrics")).text)

            # A message has arrived before the worker has heard so, and counts it.
            delivered = ("referrals_deliveries_total", ("endpoint", "backend"), ("outcome", "delivered"))
            counters = await until(scrape, lambda seen: seen.get(delivered, 0) >= 3)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 40)
    assert sorted(each["type"] for each in said) == ["bonus.credited", "bonus.credited", "referral.signed_up"]
    assert {each["data"]["referral_id"] for each in said} == {click.referral_id}
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [line["endpoints"] for line in lines if line["event"] == "worker started"] == [["backend", "dead"]]
    assert KEY not in log.read_text()
    assert {key: number for key, number in counters.items() if "deliveries" in key[0]} == {
        ("referrals_deliveries_total", ("endpoint", "backend"), ("outcome", "delivered")): 3,
        ("referrals_deliveries_total", ("endpoint", "backend"), ("outcome", "given_up")): 0,
        # It has taken none of the three, and is tried again for days.
        ("referrals_deliveries_total", ("endpoint", "dead"), ("outcome", "delivered")): 0,
        ("referrals_deliveries_total", ("endpoint", "dead"), ("outcome", "given_up")): 0,
    }
    assert counters[("referrals_credits_total", ("plan", "pro"))] == 1
