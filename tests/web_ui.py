"""Runs of every end, as an operator meets them in Temporal's Web UI: what its pictures and saved queries are tried on.

They come about as they do in life: over the HTTP interface, by Stripe's events, by an operator's decision.
"""

import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sqlalchemy import text
from temporalio import activity, workflow
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    UnsandboxedWorkflowRunner,
    Worker,
)

from activities.delivery import Deliveries, Endpoint, http_client
from billing.api import StripeApi
from ledger import referrals
from ledger.database import Database
from tests.http_support import Starter, paid, person
from tests.stripe_events import Event, invoice_paid, unique
from tests.stripe_server import API_KEY, StripeServer, stripe_server
from tests.support import MONTH, Member, World, refunded, until
from workflows import deliveries, messages
from workflows.delivery_client import DeliveryRuns
from workflows.jobs import upkeep_queue
from workflows.messages import ReferralStart, workflow_id
from workflows.reconciliation_messages import RECONCILIATION, ReconciliationStart

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
WINDOW_AND_GRACE = timedelta(days=97)

ENDPOINT = "backend"
SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

Make = Callable[["Scene"], Awaitable[str]]
RUNS: dict[str, Make] = {}
"""By what they show; each gives the id of the run."""


def shows(make: Make) -> Make:
    """Take it into the collection."""
    RUNS[make.__name__.replace("_", " ")] = make
    return make


@workflow.defn(name=messages.WORKFLOW)
class BrokenRelease:
    """A release whose code cannot go on with a referral."""

    @workflow.run
    async def run(self, _: ReferralStart) -> None:
        """Fail, as often as it is tried."""
        raise RuntimeError("this release has a bug")


class Away(Interceptor):
    """Keeps a step of chosen referrals from succeeding, however it is taken: the database is away."""

    def __init__(self) -> None:
        self.referrals: set[str] = set()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        away = self

        class Inbound(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
                if activity.info().activity_type == "credit_both" and input.args[0] in away.referrals:
                    raise ConnectionError("the database is away")
                return await super().execute_activity(input)

        return Inbound(next)


class Backend:
    """What messages are sent to. It takes none of those that are about a referral which it has never heard of."""

    def __init__(self) -> None:
        self.unknown: set[str] = set()
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(500 if said["data"].get("referral_id") in backend.unknown else 200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing on the terminal."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @contextmanager
    def serving(self) -> Iterator[Endpoint]:
        """Serve; gives where."""
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield Endpoint(f"http://127.0.0.1:{self.server.server_port}/told", [SECRET])
        finally:
            self.server.shutdown()
            self.server.server_close()


@dataclass(frozen=True)
class Scene:
    """The whole program with everybody around it."""

    starter: Starter
    world: World
    """Whose messages are delivered."""
    away: Away
    backend: Backend
    stripe: StripeServer

    async def referred(self, cycle_ends_in: timedelta = MONTH / 2) -> tuple[str, Member, Member]:
        """A friend who signed up by a member's link and has not paid: the referral's id, the member, the friend."""
        rita = await self.starter.subscriber(cycle_ends_in=cycle_ends_in)
        visit = await self.starter.click(await self.starter.link(rita), channel="whatsapp")
        fred = person("fred")
        referral_id = await self.starter.signed_up(fred, referral_token=visit.token)
        await self.starter.account(fred)
        await self.starter.reaches(referral_id, "signed_up")
        return referral_id, rita, fred

    async def credited(self, *, soon_over: bool = False) -> tuple[str, list[Event]]:
        """A referral that is credited, perhaps for cycles that end while one looks on; and the friend's payment."""
        began = datetime.now(UTC)
        # A member whose next payment Stripe is about to collect has no cycle yet that is longer.
        referral_id, rita, fred = await self.referred(-HOUR if soon_over else MONTH / 2)
        # A cycle that is over before the credit would not bound it: on a slow machine it is longer.
        cycle = max(4 * SECOND, 4 * (datetime.now(UTC) - began)) if soon_over else MONTH
        if soon_over:
            await self.pays(rita, cycle)
        payment = await self.pays(fred, cycle)
        await self.starter.reaches(referral_id, "credited", "settled")
        return referral_id, payment

    async def pays(self, fred: Member, length: timedelta = MONTH) -> list[Event]:
        """The friend pays for a plan; gives what Stripe told of it."""
        now = datetime.now(UTC)
        events = paid(fred, now, now + length)
        await self.stripe_tells(*events)
        return events

    async def stripe_tells(self, *events: Event) -> None:
        """Let events come in, which must be taken."""
        for event in events:
            answer = await self.starter.stripe(event)
            assert answer.status_code == 200, answer.text

    async def held(self) -> tuple[str, Member]:
        """A referral that is held, for the friend got a part of the payment back before the signup; and the friend."""
        rita, fred = await self.starter.subscriber(), person("fred")
        visit = await self.starter.click(await self.starter.link(rita), channel="qr")
        await self.starter.account(fred)
        await self.stripe_tells(*refunded(await self.pays(fred), 900, datetime.now(UTC)))
        referral_id = await self.starter.signed_up(fred, referral_token=visit.token)
        await self.starter.reaches(referral_id, "in_review")
        return referral_id, fred

    async def marked(self, *, soon_over: bool = False) -> str:
        """A referral whose payment was refunded after the credit."""
        referral_id, payment = await self.credited(soon_over=soon_over)
        await self.stripe_tells(*refunded(payment, 2900, datetime.now(UTC)))
        # Where its cycle is over already, its run is, too, and another one waits for the decision.
        await until(lambda: self.world.referral(referral_id), lambda shown: bool(shown.review_reasons))
        return referral_id

    async def delivery(self, referral_id: str) -> str:
        """The run that delivers the first message about a referral."""
        query = text("SELECT message_id FROM outbox WHERE referral_id = :referral ORDER BY created_at LIMIT 1")

        async def look() -> str | None:
            async with self.world.database.transaction() as transaction:
                found = (await transaction.execute(query, {"referral": referral_id})).scalar_one_or_none()
            return None if found is None else str(found)

        return deliveries.run_id(str(await until(look, bool)))


@shows
async def a_click(scene: Scene) -> str:
    rita = await scene.starter.subscriber()
    visit = await scene.starter.click(await scene.starter.link(rita), channel="whatsapp")
    return workflow_id(visit.referral_id)


@shows
async def lapsed(scene: Scene) -> str:
    rita = await scene.starter.subscriber()
    click = await scene.world.click(rita, ago=WINDOW_AND_GRACE - 2 * SECOND)
    await scene.world.outcome(click.referral_id)
    return workflow_id(click.referral_id)


@shows
async def waits_for_a_payment(scene: Scene) -> str:
    referral_id, *_ = await scene.referred()
    return workflow_id(referral_id)


@shows
async def refused(scene: Scene) -> str:
    rita = await scene.starter.subscriber()
    visit = await scene.starter.click(await scene.starter.link(rita), channel="email")
    twin = person("twin", customer=False)
    twin.email = rita.email
    referral_id = await scene.starter.signed_up(twin, referral_token=visit.token)
    await scene.starter.reaches(referral_id, "refused")
    return workflow_id(referral_id)


@shows
async def in_review(scene: Scene) -> str:
    referral_id, _ = await scene.held()
    return workflow_id(referral_id)


@shows
async def rejected(scene: Scene) -> str:
    referral_id, _ = await scene.held()
    await scene.world.review(workflow_id(referral_id), "reject")
    return workflow_id(referral_id)


@shows
async def credited(scene: Scene) -> str:
    return workflow_id((await scene.credited())[0])


@shows
async def settled(scene: Scene) -> str:
    referral_id, _ = await scene.credited(soon_over=True)
    await scene.world.outcome(referral_id)
    return workflow_id(referral_id)


@shows
async def voided_before_the_credit(scene: Scene) -> str:
    referral_id, *_ = await scene.referred()
    await scene.world.void(workflow_id(referral_id))
    await scene.world.outcome(referral_id)
    return workflow_id(referral_id)


@shows
async def marked_after_the_credit(scene: Scene) -> str:
    return workflow_id(await scene.marked())


@shows
async def voided_after_the_credit(scene: Scene) -> str:
    referral_id = await scene.marked()
    await scene.world.void(workflow_id(referral_id))
    await scene.world.outcome(referral_id)
    return workflow_id(referral_id)


@shows
async def a_review(scene: Scene) -> str:
    referral_id = await scene.marked(soon_over=True)
    await scene.world.outcome(referral_id)
    return messages.review_id(referral_id)


@shows
async def a_review_that_is_decided(scene: Scene) -> str:
    run = await a_review(scene)
    await scene.world.review(run, "approve")
    return run


@shows
async def an_unknown_price(scene: Scene) -> str:
    referral_id, _, fred = await scene.referred()
    now = datetime.now(UTC)
    await scene.stripe_tells(
        invoice_paid(fred.customer_id, fred.subscription_id, now, now + MONTH, plan=unique("mystery"))
    )
    await until(lambda: scene.world.state(referral_id), lambda state: state.needs_attention is not None)
    return workflow_id(referral_id)


@shows
async def a_step_that_fails(scene: Scene) -> str:
    referral_id, _, fred = await scene.referred()
    scene.away.referrals.add(referral_id)
    await scene.pays(fred)
    return workflow_id(referral_id)


@shows
async def a_run_that_is_stuck(scene: Scene) -> str:
    client, queue = scene.world.environment.client, f"{scene.world.task_queue}-release"
    start = ReferralStart(referrals.new_id(), "acct-rita", datetime.now(UTC), datetime.now(UTC) + WINDOW_AND_GRACE)
    async with Worker(client, task_queue=queue, workflows=[BrokenRelease], workflow_runner=UnsandboxedWorkflowRunner()):
        run = await client.start_workflow(messages.WORKFLOW, start, id=workflow_id(start.referral_id), task_queue=queue)
        await until(run.describe, lambda seen: "TemporalReportedProblems" in seen.search_attributes)
    return run.id


@shows
async def ended_from_outside(scene: Scene) -> str:
    referral_id, *_ = await scene.referred()
    run = scene.world.handle(referral_id)
    # Not before its stage is on record: what the ledger knows already, the run may be about to write down.
    await until(run.describe, lambda seen: seen.typed_search_attributes.get(messages.REFERRAL_STAGE) == "signed_up")
    await run.terminate("ended by mistake")
    return workflow_id(referral_id)


@shows
async def a_delivery(scene: Scene) -> str:
    return await scene.delivery((await scene.referred())[0])


@shows
async def a_delivery_that_fails(scene: Scene) -> str:
    rita = await scene.starter.subscriber()
    visit = await scene.starter.click(await scene.starter.link(rita), channel="whatsapp")
    scene.backend.unknown.add(visit.referral_id)
    await scene.starter.signed_up(person("fred"), referral_token=visit.token)
    return await scene.delivery(visit.referral_id)


@shows
async def a_reconciliation(scene: Scene) -> str:
    run = await scene.world.environment.client.start_workflow(
        RECONCILIATION,
        ReconciliationStart(),
        id=unique("referrals-reconcile-test"),
        task_queue=upkeep_queue(scene.world.task_queue),
        static_summary="reconciliation: what Stripe told of and nobody heard",
    )
    await run.result()
    return run.id


@asynccontextmanager
async def scene_on(starter: Starter) -> AsyncIterator[Scene]:
    """The workers beside a starter, and everybody around."""
    world, away, backend = starter.world, Away(), Backend()
    runs = DeliveryRuns(world.environment.client, world.task_queue, timeout=timedelta(seconds=10))
    database = Database(starter.urls.app, offset=world.clock.offset, announce=runs.announce)
    telling = World(database, world.plans, world.environment, world.clock, world.task_queue)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        stack.push_async_callback(runs.settle)
        stripe = await stack.enter_async_context(stripe_server())
        api = StripeApi(API_KEY, stripe.base, requests_a_second=1000, retries=0)
        stack.push_async_callback(api.close)
        endpoint = stack.enter_context(backend.serving())
        http = await stack.enter_async_context(http_client())
        delivering = Deliveries(database, {ENDPOINT: endpoint}, http)
        await stack.enter_async_context(telling.worker(away))
        await stack.enter_async_context(telling.courier(ENDPOINT, delivering))
        await stack.enter_async_context(telling.upkeep_worker(stripe=api, deliveries=delivering, runs=runs))
        yield Scene(starter, telling, away, backend, stripe)
