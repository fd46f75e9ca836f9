"""Reconciliation: what Stripe told of and nobody heard is found, once, whatever interrupts it."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs
from temporalio.client import Client
from temporalio.runtime import MetricBuffer, Runtime, TelemetryConfig
from temporalio.testing import ActivityEnvironment, WorkflowEnvironment

from activities.reconciliation import AT_ONCE, KEPT, OVERLAP, StripeReconciliation, count_run_over
from activities.telling import Messenger
from billing.api import StripeApi, StripeUnreachableError
from cli.reconcile import AlreadyRunningError
from cli.reconcile import reconcile as reconcile_by_hand
from ledger import reconciliation
from ledger.measures import measures
from program.plans import NotPlans, Plans
from program.referral import Stage
from runtime.temporal import set_up_namespace
from tests.stripe_events import Event, as_before_basil, invoice_paid, invoice_payment_paid, price, subscription, unique
from tests.stripe_server import Asked, StripeServer
from tests.support import HASHES, MONTH, AtStep, Books, Member, World, command, refunded, until
from workflows.jobs import upkeep_queue
from workflows.payloads import DATA_CONVERTER
from workflows.reconciliation_messages import RECONCILIATION, PageRead, Progress, Reconciled, ReconciliationStart, Span


@dataclass
class Reconciling:
    """The steps on a test's ledger, outside of any run; of the referrals' runs the server alone is there."""

    steps: StripeReconciliation
    books: Books
    environment: ActivityEnvironment

    async def step(self, step: Any, *arguments: Any) -> Any:
        await self.books.clock.now()
        return await self.environment.run(step, *arguments)

    async def read(self, since: datetime, until: datetime, *, advances: bool = True) -> PageRead:
        """Read a whole span; gives what became of it altogether."""
        applied = unreadable = 0
        page = PageRead(None, 0, 0)
        while True:
            page = await self.step(self.steps.apply_events, Span(since, until, page.after, advances))
            applied, unreadable = applied + page.applied, unreadable + page.unreadable
            if page.after is None:
                return PageRead(None, applied, unreadable)

    async def cursor(self) -> datetime | None:
        async with self.books.database.transaction() as transaction:
            return await reconciliation.events_read_until(transaction)

    async def move_cursor(self, until: datetime) -> None:
        async with self.books.database.transaction() as transaction:
            await reconciliation.events_were_read(transaction, until)


@pytest.fixture
async def reconciling(live_idle_world: World, api: StripeApi) -> Reconciling:
    world = live_idle_world
    messenger = Messenger(world.runs, world.database, count_run_over)
    steps = StripeReconciliation(world.database, world.plans, messenger, api, HASHES)
    return Reconciling(steps, Books(world.database, world.plans, world.clock), ActivityEnvironment())


def whole_seconds(at: datetime) -> datetime:
    return at.replace(microsecond=0)


async def reconcile(world: World, start: ReconciliationStart | None = None) -> Reconciled:
    """Let one reconciliation run to its end."""
    reconciled: Reconciled = await world.environment.client.execute_workflow(
        RECONCILIATION,
        start or ReconciliationStart(),
        id=unique("reconciliation"),
        task_queue=upkeep_queue(world.task_queue),
        result_type=Reconciled,
    )
    return reconciled


def bought(friend: Member, now: datetime, **invoice: Any) -> list[Event]:
    """What Stripe makes when a friend pays for a plan."""
    bill = invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH, **invoice)
    return [
        subscription(friend.customer_id, friend.subscription_id, now, now + MONTH),
        bill,
        invoice_payment_paid(bill["data"]["object"]["id"], now),
    ]


async def test_rule_3_a_payment_that_no_webhook_told_of_is_found_and_credits_both(
    live_world: World, server: StripeServer, api: StripeApi
) -> None:
    referral_id, _, friend = await live_world.waiting_friend()
    server.happen(*bought(friend, datetime.now(UTC)))

    async with live_world.upkeep_worker(stripe=api):
        first = await reconcile(live_world)
        assert await live_world.reaches(referral_id, Stage.CREDITED)
        second = await reconcile(live_world)

    assert first.progress is not None
    assert second.progress is not None
    assert (first.progress.events, second.progress.events) == (3, 0)
    assert len(await live_world.lots(friend)) == 1


async def test_rule_14_a_paid_invoice_is_found_though_stripe_has_its_event_no_more(
    live_world: World, server: StripeServer, api: StripeApi
) -> None:
    referral_id, _, friend = await live_world.waiting_friend()
    _, bill, payment = bought(friend, datetime.now(UTC))
    server.add(bill["data"]["object"], payment["data"]["object"])

    async with live_world.upkeep_worker(stripe=api):
        first = await reconcile(live_world)
        assert await live_world.reaches(referral_id, Stage.CREDITED)
        second = await reconcile(live_world)

    assert first.progress is not None
    assert second.progress is not None
    assert (first.progress.invoices, second.progress.invoices) == (1, 0)


async def test_a_step_that_dies_after_each_page_and_a_stripe_that_fails_cost_nothing_but_time(
    live_idle_world: World, server: StripeServer, api: StripeApi
) -> None:
    world, books = live_idle_world, Books(live_idle_world.database, live_idle_world.plans, live_idle_world.clock)
    now = await books.clock.now()
    friends = [await books.someone() for _ in range(75)]
    server.happen(*(event for friend in friends for event in bought(friend, now - timedelta(minutes=1))))

    async def die() -> None:
        raise ConnectionError("the worker is gone after the page's last commit")

    dies = AtStep("apply_events", after=die)
    server.failures.extend([429, 500])
    async with world.upkeep_worker(dies, stripe=api):
        reconciled = await reconcile(world, ReconciliationStart(since=now - timedelta(hours=1)))

    assert dies.happened
    assert reconciled.progress is not None
    assert await books.rows("SELECT count(*) FROM paid_period") == [(75,)]
    assert await books.rows("SELECT count(*), count(signalled_at) FROM stripe_event") == [(225, 225)]


async def test_the_cursor_moves_only_when_a_whole_span_was_applied(
    reconciling: Reconciling, server: StripeServer
) -> None:
    now = whole_seconds(await reconciling.books.clock.now())
    for number in range(120):
        friend = await reconciling.books.someone()
        server.happen(bought(friend, now - timedelta(seconds=number))[1])
    span = Span(now - timedelta(hours=6), now, None, True)

    first = await reconciling.step(reconciling.steps.apply_events, span)
    assert (first.applied, await reconciling.cursor()) == (100, None)
    last = await reconciling.step(reconciling.steps.apply_events, Span(span.since, now, first.after, True))

    assert (last.after, last.applied, await reconciling.cursor()) == (None, 20, now)
    assert (await reconciling.read(span.since, now)).applied == 0


async def test_an_event_that_is_listed_late_is_found_by_the_overlap(
    reconciling: Reconciling, server: StripeServer
) -> None:
    now = whole_seconds(await reconciling.books.clock.now())
    await reconciling.move_cursor(now)
    friend = await reconciling.books.someone()
    server.happen(bought(friend, now - OVERLAP / 2)[1])

    progress = await reconciling.step(reconciling.steps.begin_reconciliation, ReconciliationStart())

    assert progress.since == now - OVERLAP
    assert (await reconciling.read(progress.since, progress.until)).applied == 1


async def test_reading_from_a_later_time_by_hand_leaves_the_cursor_where_it_is(reconciling: Reconciling) -> None:
    now = whole_seconds(await reconciling.books.clock.now())
    read_until = now - timedelta(days=10)
    await reconciling.move_cursor(read_until)
    for since, advances in ((now - timedelta(days=2), False), (now - timedelta(days=12), True)):
        progress = await reconciling.step(reconciling.steps.begin_reconciliation, ReconciliationStart(since))
        assert (progress.since, progress.advances) == (since, advances)

    await reconciling.read(now - timedelta(days=2), now, advances=False)

    assert await reconciling.cursor() == read_until


async def test_what_stripe_keeps_no_more_is_said_loudly_and_all_who_wait_are_compared(
    reconciling: Reconciling,
) -> None:
    now = await reconciling.books.clock.now()
    await reconciling.move_cursor(now - KEPT - timedelta(days=1))
    async with reconciling.books.database.transaction() as transaction:
        await reconciliation.walked_to(transaction, "f" * 24)

    with capture_logs() as lines:
        progress = await reconciling.step(reconciling.steps.begin_reconciliation, ReconciliationStart())

    assert progress.gap
    assert progress.until - progress.since == KEPT
    assert [line["log_level"] for line in lines] == ["error"]
    async with reconciling.books.database.transaction() as transaction:
        assert await reconciliation.position(transaction, "waiting referrals") is None


async def test_those_who_wait_have_their_turn_one_after_the_other(
    reconciling: Reconciling, server: StripeServer
) -> None:
    books = reconciling.books
    referrer = await books.subscriber()
    friends = [await books.someone() for _ in range(AT_ONCE + 1)]
    for friend in friends:
        await books.sign_up(referrer, friend)
        await books.put(friend, linked=True)
        server.add(bought(friend, await books.clock.now())[1]["data"]["object"])

    turns = [await reconciling.step(reconciling.steps.compare_invoices) for _ in range(3)]

    assert [(turn.referrals, turn.invoices, turn.round_over) for turn in turns] == [
        (AT_ONCE, AT_ONCE, False),
        (1, 1, True),
        (AT_ONCE, 0, False),
    ]
    assert server.reads("/v1/invoices") == 2 * AT_ONCE + 1


async def waiting_with_invoice(reconciling: Reconciling, server: StripeServer) -> tuple[str, list[Event]]:
    """A referral whose friend has paid by an invoice that no event told of; Stripe knows its objects, no events."""
    books = reconciling.books
    friend = await books.someone()
    referral_id = await books.sign_up(await books.subscriber(), friend)
    await books.put(friend, linked=True)
    events = bought(friend, whole_seconds(await books.clock.now()))
    server.add(*(event["data"]["object"] for event in events[1:]))
    return referral_id, events


async def test_a_customer_that_stripe_has_not_and_an_invoice_that_cannot_be_read_hold_nobody_up(
    reconciling: Reconciling, server: StripeServer
) -> None:
    books = reconciling.books
    stranger = await books.someone()
    unheard = await books.sign_up(await books.subscriber(), stranger)
    await books.put(stranger, linked=True)
    _, broken = await waiting_with_invoice(reconciling, server)
    invoice = {**broken[1]["data"]["object"]}
    del invoice["amount_paid"]
    server.add(invoice)
    paid, _ = await waiting_with_invoice(reconciling, server)

    with capture_logs() as lines:
        compared = await reconciling.step(reconciling.steps.compare_invoices)

    assert (compared.referrals, compared.invoices, compared.unreadable, compared.round_over) == (3, 1, 1, True)
    assert (await books.credit(paid)).stage is Stage.CREDITED
    said = {line["log_level"]: line for line in lines if line["log_level"] != "info"}
    assert said["warning"]["referral_id"] == unheard
    assert said["error"]["invoice_id"] == invoice["id"]
    assert stranger.customer_id not in repr(lines)


async def test_rule_14_a_refund_known_before_is_seen_although_the_invoice_is_found_and_the_step_dies(
    reconciling: Reconciling, server: StripeServer
) -> None:
    books = reconciling.books
    referral_id, events = await waiting_with_invoice(reconciling, server)
    paid_by, refund = refunded(events, 100, await books.clock.now())
    server.forget("invoice_payment", events[2]["data"]["object"]["id"])
    server.add(paid_by["data"]["object"])
    await books.report(refund)

    async def be_away(asked: Asked) -> None:
        if asked.path == "/v1/invoice_payments":
            server.failures.append(500)

    server.before = be_away
    with pytest.raises(StripeUnreachableError):
        await reconciling.step(reconciling.steps.compare_invoices)
    assert (await books.credit(referral_id)).stage is Stage.SIGNED_UP
    server.before = None
    await reconciling.step(reconciling.steps.compare_invoices)

    assert (await books.credit(referral_id)).stage is Stage.IN_REVIEW


async def test_whoever_was_never_told_of_an_applied_event_is_told(
    live_world: World, server: StripeServer, api: StripeApi
) -> None:
    referral_id, _, friend = await live_world.waiting_friend()
    events = bought(friend, datetime.now(UTC))
    server.happen(*events)
    books = Books(live_world.database, live_world.plans, live_world.clock)
    for event in events:
        await books.apply(event)
    await books.rows("UPDATE stripe_event SET received_at = received_at - interval '2 minutes' RETURNING 1")
    async with live_world.database.transaction() as transaction:
        assert len(await reconciliation.untold(transaction, timedelta(minutes=1), 10)) == 3
        await reconciliation.events_were_read(transaction, datetime.now(UTC) + 2 * OVERLAP)

    async with live_world.upkeep_worker(stripe=api):
        reconciled = await reconcile(live_world)
        assert await live_world.reaches(referral_id, Stage.CREDITED)

    assert reconciled.progress is not None
    assert reconciled.progress.told == 3
    assert await books.rows("SELECT count(*) FROM stripe_event WHERE signalled_at IS NULL") == [(0,)]


async def test_an_old_event_is_read_anew_and_one_that_cannot_be_read_holds_nothing_up(
    reconciling: Reconciling, server: StripeServer
) -> None:
    now = whole_seconds(await reconciling.books.clock.now())
    old, broken, good = [bought(await reconciling.books.someone(), now)[1] for _ in range(3)]
    server.happen(old, broken, good)
    server.add(as_before_basil(old))
    del broken["data"]["object"]["amount_paid"]
    server.add(broken)

    with capture_logs() as lines:
        read = await reconciling.read(now - timedelta(hours=1), now)

    assert (read.applied, read.unreadable) == (2, 1)
    assert [line["event_id"] for line in lines if line["log_level"] == "error"] == [broken["id"]]
    assert await reconciling.cursor() == now


async def test_while_stripe_is_away_nothing_moves(reconciling: Reconciling, server: StripeServer) -> None:
    now = await reconciling.books.clock.now()
    for status in (429, 500):
        server.failures.append(status)
        with pytest.raises(StripeUnreachableError):
            await reconciling.read(now - timedelta(hours=1), now)

    assert await reconciling.cursor() is None


async def test_without_a_key_a_reconciliation_does_nothing_and_says_so_once(live_idle_world: World) -> None:
    with capture_logs() as lines:
        async with live_idle_world.upkeep_worker():
            outcomes = [await reconcile(live_idle_world) for _ in range(2)]

    assert [outcome.possible for outcome in outcomes] == [False, False]
    assert [line["event"] for line in lines if "REFERRALS_STRIPE_API_KEY" in line["event"]] == [
        "no reconciliation: set REFERRALS_STRIPE_API_KEY and REFERRALS_IDENTITY_HASH_KEY"
    ]


async def paid_for_an_unknown_price(world: World) -> tuple[str, str]:
    """A referral that needs attention, and the price that nobody knows."""
    referral_id, _, friend = await world.waiting_friend()
    now = datetime.now(UTC)
    await world.report(invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH, plan="mystery"))
    await until(lambda: world.state(referral_id), lambda state: state.needs_attention is not None)
    return referral_id, "price_mystery"


async def test_rule_14_a_price_that_no_event_told_of_is_asked_of_stripe_and_the_referral_goes_on(
    live_world: World, server: StripeServer, api: StripeApi
) -> None:
    referral_id, price_id = await paid_for_an_unknown_price(live_world)

    async with live_world.upkeep_worker(stripe=api):
        # Stripe knows it no more than we do; then it does, and is away for a moment.
        await reconcile(live_world)
        assert (await live_world.referral(referral_id)).needs_attention
        server.add(price(price_id, "pro", created=datetime.now(UTC))["data"]["object"])
        server.failures.append(500)
        await reconcile(live_world)
        assert await live_world.reaches(referral_id, Stage.CREDITED)

    assert (await live_world.referral(referral_id)).plan == "pro"
    assert not (await live_world.referral(referral_id)).needs_attention


async def test_rule_14_nobody_asks_for_what_is_listed_as_no_plan(
    reconciling: Reconciling, server: StripeServer, api: StripeApi, live_idle_world: World
) -> None:
    books, world = reconciling.books, live_idle_world
    known = Plans(books.plans, NotPlans(products=frozenset({"prod_mystery"})))
    friend = await books.someone()
    await books.sign_up(await books.subscriber(), friend)
    await books.put(friend, linked=True)
    await books.pay(friend, plan="mystery")
    asks = StripeReconciliation(
        world.database, known, Messenger(world.runs, world.database, count_run_over), api, HASHES
    )

    await reconciling.step(asks.compare_invoices)
    assert server.reads("/v1/prices") == 0
    await reconciling.step(reconciling.steps.compare_invoices)
    assert server.reads("/v1/prices") == 1


async def test_a_long_reconciliation_goes_on_in_a_new_run_and_finds_everything_once(
    short_histories_world: World, server: StripeServer, api: StripeApi
) -> None:
    world = short_histories_world
    books = Books(world.database, world.plans, world.clock)
    now = whole_seconds(await books.clock.now())
    for days in range(6):
        server.happen(bought(await books.someone(), now - timedelta(days=days, minutes=1))[1])

    async with world.upkeep_worker(stripe=api):
        reconciled = await reconcile(world, ReconciliationStart(since=now - timedelta(days=6)))

    assert reconciled.progress is not None
    assert (reconciled.progress.events, reconciled.progress.unreadable) == (6, 0)
    assert await books.rows("SELECT count(*) FROM paid_period") == [(6,)]

    async def runs() -> int:
        query = f"WorkflowType = '{RECONCILIATION}' AND ExecutionStatus = 'ContinuedAsNew'"
        return (await world.environment.client.count_workflows(query)).count

    await until(runs, lambda number: number >= 2)
    # No span was listed twice: the next run went on where the one before had been.
    spans = [asked.query["created[gte]"] for asked in server.asked if asked.path == "/v1/events"]
    assert len(spans) == len(set(spans)) >= 24


async def test_what_was_mended_and_how_far_behind_it_is_can_be_seen_in_the_metrics(
    reconciling: Reconciling, server: StripeServer
) -> None:
    buffer = MetricBuffer(100)
    reconciling.environment.metric_meter = Runtime(telemetry=TelemetryConfig(metrics=buffer)).metric_meter
    books = reconciling.books
    now = whole_seconds(await books.clock.now())
    server.happen(*bought(await books.someone(), now - timedelta(minutes=1)))
    friend = await books.someone()
    await books.sign_up(await books.subscriber(), friend)
    await books.put(friend, linked=True)
    server.add(bought(friend, now)[1]["data"]["object"])

    await reconciling.read(now - timedelta(hours=1), now - timedelta(seconds=30))
    await reconciling.step(reconciling.steps.compare_invoices)
    progress = Progress(now, now)
    await reconciling.step(reconciling.steps.report_reconciliation, progress)

    seen = Counter[str]()
    for update in buffer.retrieve_updates():
        seen[update.metric.name] += int(update.value)
    assert (seen["referrals_reconciled_events_total"], seen["referrals_reconciled_invoices_total"]) == (2, 1)
    async with books.database.transaction() as transaction:
        lag = (await measures(transaction)).events_lag
    assert lag is not None
    assert 30 <= lag < 300


@pytest.fixture
async def own_world(live_idle_world: World) -> World:
    """The program in a namespace of the test's own, for the id of a run by hand is fixed; no worker runs."""
    world = live_idle_world
    address = world.environment.client.service_client.config.target_host
    client = await Client.connect(address, namespace=unique("by-hand"), data_converter=DATA_CONVERTER)
    await set_up_namespace(client)
    return World(world.database, world.plans, WorkflowEnvironment.from_client(client), world.clock, world.task_queue)


def asked_for(world: World) -> dict[str, str]:
    """The environment in which the console script reaches a test's Temporal."""
    client = world.environment.client
    return {
        "TEMPORAL_ADDRESS": client.service_client.config.target_host,
        "TEMPORAL_NAMESPACE": client.namespace,
        "REFERRALS_TASK_QUEUE": world.task_queue,
    }


async def test_by_hand_a_reconciliation_is_waited_for_and_says_what_it_mended(
    own_world: World, server: StripeServer, api: StripeApi
) -> None:
    world = own_world
    books = Books(world.database, world.plans, world.clock)
    now = whole_seconds(await books.clock.now())
    server.happen(bought(await books.someone(), now - timedelta(days=2))[1])
    async with world.upkeep_worker(stripe=api):
        later = await command(
            "reconcile", "--json", "--since", f"{now - timedelta(days=1):%Y-%m-%dT%H:%M:%S}", **asked_for(world)
        )
        sooner = await command("reconcile", "--since", f"{now - timedelta(days=3):%Y-%m-%d}", **asked_for(world))

    assert (later[0], sooner[0]) == (0, 0), (later, sooner)
    assert json.loads(later[1])["events"] == 0
    assert "events applied that no webhook had handled: 1" in sooner[1]
    assert len(await books.rows("SELECT 1 FROM paid_period")) == 1


async def test_by_hand_it_is_said_where_the_workers_have_no_key(own_world: World) -> None:
    async with own_world.upkeep_worker():
        status, _, words = await command("reconcile", **asked_for(own_world))

    assert status == 1
    assert "REFERRALS_STRIPE_API_KEY" in words


async def test_by_hand_whoever_waits_hears_what_keeps_it_and_no_second_one_is_started(
    own_world: World, server: StripeServer, api: StripeApi
) -> None:
    world, said = own_world, list[str]()
    client = world.environment.client

    async def heard() -> list[str]:
        return said

    waiting = asyncio.create_task(
        reconcile_by_hand(client, world.task_queue, None, said.append, look=timedelta(milliseconds=50))
    )
    await until(heard, lambda lines: any("are the workers running?" in line for line in lines))
    with pytest.raises(AlreadyRunningError):
        await reconcile_by_hand(client, world.task_queue, datetime.now(UTC), said.append)
    server.failures.extend([401, 401])
    async with world.upkeep_worker(stripe=api):
        await until(heard, lambda lines: any("/v1/events: HTTP 401" in line for line in lines))
        assert (await waiting).possible

    assert "example.com" not in " ".join(said)
