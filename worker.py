"""The worker: carries out the runs of all referrals, and what is done beside them. `python worker.py`."""

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

import structlog
from temporalio.client import Client
from temporalio.common import MetricMeter, VersioningBehavior, WorkerDeploymentVersion
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.worker import Interceptor, PollerBehaviorAutoscaling, Worker, WorkerDeploymentConfig, WorkflowRunner

from activities.delivery import Deliveries, Endpoint, http_client
from activities.reconciliation import StripeReconciliation, count_run_over, declare_metrics
from activities.referral import LedgerActivities
from activities.telling import Messenger
from activities.upkeep import LedgerUpkeep
from billing.api import StripeApi
from billing.cards import Cards
from ledger.counting import CREDIT_SECONDS, Counting
from ledger.database import Database
from ledger.happenings import What
from program.identity import IdentityHash
from program.plans import Plans, PlansError, load_plans
from program.signals import SignalPolicy
from runtime.health import health_at
from runtime.logs import configure_logs
from runtime.meter import SdkMeter
from runtime.settings import SettingsError, WorkerSettings
from runtime.temporal import connect, leave
from runtime.tracing import tracing
from workflows.client import ReferralRuns
from workflows.deliveries import delivery_queue
from workflows.delivery_client import DeliveryRuns
from workflows.jobs import upkeep_queue
from workflows.registry import REFERRALS, UPKEEP, workflow_runner

GRACEFUL_SHUTDOWN = timedelta(seconds=20)
"""How long steps under way may take to finish when the worker is told to stop."""

STICKY = timedelta(seconds=3)
"""How long a run waits for the worker that has it in memory. After a crash, another one takes it up after that."""

POLLS = PollerBehaviorAutoscaling()
"""As many at once as the server says that there is work. By the SDK's default there is one for runs that no worker
remembers, and after a restart that is all of them."""

STEPS_AT_ONCE = 10
"""Of each kind, local and regular: each step holds a connection, and the pool has twice as many."""

UPKEEP_STEPS_AT_ONCE = 4
"""Upkeep is in no hurry, and its connections are few and its own: nothing of it keeps a credit waiting."""

SENT_AT_ONCE = 4
"""To one endpoint: a slow one is not overrun, and keeps no other endpoint waiting."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def deployment(settings: WorkerSettings) -> WorkerDeploymentConfig | None:
    """How runs move between releases: to the newest one by themselves (AUTO_UPGRADE); none where none is named.

    Raises:
        SettingsError: only one of deployment name and build id is set.
    """
    if settings.deployment_name is None and settings.build_id is None:
        return None
    if settings.deployment_name is None or settings.build_id is None:
        raise SettingsError("set both REFERRALS_DEPLOYMENT_NAME and REFERRALS_BUILD_ID, or neither")
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(settings.deployment_name, settings.build_id),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
    )


def build_worker(
    client: Client,
    task_queue: str,
    database: Database,
    plans: Plans,
    policy: SignalPolicy,
    versions: WorkerDeploymentConfig | None = None,
    interceptors: Sequence[Interceptor] = (),
    cards: Cards | None = None,
) -> Worker:
    """Put a worker together: the workflows of referrals, and their steps on the ledger."""
    steps = LedgerActivities(database, plans, policy, cards)
    return Worker(
        client,
        task_queue=task_queue,
        workflows=list(REFERRALS.values()),
        activities=[steps.attribute_signup, steps.credit_both, steps.expire_bonuses, steps.decide],
        workflow_runner=workflow_runner(),
        deployment_config=versions,
        interceptors=interceptors,
        graceful_shutdown_timeout=GRACEFUL_SHUTDOWN,
        sticky_queue_schedule_to_start_timeout=STICKY,
        workflow_task_poller_behavior=POLLS,
        max_concurrent_activities=STEPS_AT_ONCE,
        max_concurrent_local_activities=STEPS_AT_ONCE,
    )


def build_upkeep_worker(
    client: Client,
    task_queue: str,
    database: Database,
    plans: Plans,
    versions: WorkerDeploymentConfig | None = None,
    interceptors: Sequence[Interceptor] = (),
    *,
    deliveries: Deliveries,
    stripe: StripeApi | None = None,
    hashes: IdentityHash | None = None,
    runs: DeliveryRuns | None = None,
    runner: WorkflowRunner | None = None,
) -> Worker:
    """Put the worker together that does what Schedules start, on a queue of its own beside `task_queue`.

    Args:
        client: connected to Temporal.
        task_queue: that of the referrals.
        database: whose connections none of the referrals' steps waits for.
        plans: on sale.
        versions: how runs move between releases.
        interceptors: around every step.
        deliveries: what carries messages out.
        stripe: its API, where there is a key for it.
        hashes: how customers are remembered (rule 10).
        runs: starts deliveries of what a crash left; none where there is no endpoint.
        runner: what carries its workflows out; the workers' own unless given.
    """
    upkeep = LedgerUpkeep(database, runs)
    messenger = Messenger(ReferralRuns(client, task_queue), database, count_run_over)
    reconciliation = StripeReconciliation(database, plans, messenger, stripe, hashes)
    return Worker(
        client,
        task_queue=upkeep_queue(task_queue),
        workflows=list(UPKEEP.values()),
        activities=[
            deliveries.begin_delivery,
            deliveries.end_delivery,
            upkeep.remind_of_expiring,
            upkeep.remind_of_reviews,
            upkeep.start_deliveries,
            upkeep.tidy_outbox,
            reconciliation.begin_reconciliation,
            reconciliation.apply_events,
            reconciliation.tell_the_untold,
            reconciliation.compare_invoices,
            reconciliation.report_reconciliation,
        ],
        workflow_runner=runner or workflow_runner(),
        deployment_config=versions,
        interceptors=interceptors,
        graceful_shutdown_timeout=GRACEFUL_SHUTDOWN,
        sticky_queue_schedule_to_start_timeout=STICKY,
        workflow_task_poller_behavior=POLLS,
        max_concurrent_activities=UPKEEP_STEPS_AT_ONCE,
        max_concurrent_local_activities=UPKEEP_STEPS_AT_ONCE,
    )


def build_courier(
    client: Client, task_queue: str, endpoint: str, deliveries: Deliveries, interceptors: Sequence[Interceptor] = ()
) -> Worker:
    """Put the worker together that sends messages to one endpoint, on a queue of its own.

    It carries out no runs, so it belongs to no version: whichever release is up sends what is due.
    """
    return Worker(
        client,
        task_queue=delivery_queue(upkeep_queue(task_queue), endpoint),
        activities=[deliveries.deliver],
        interceptors=interceptors,
        graceful_shutdown_timeout=GRACEFUL_SHUTDOWN,
        max_concurrent_activities=SENT_AT_ONCE,
        max_concurrent_activity_task_polls=2,
    )


def metrics_runtime(address: str) -> Runtime:
    """The SDK's runtime with a page for Prometheus at `address`: the SDK's own metrics, in seconds, and ours."""
    return Runtime(
        telemetry=TelemetryConfig(
            metrics=PrometheusConfig(
                bind_address=address,
                durations_as_seconds=True,
                histogram_bucket_overrides={What.CREDITED_AFTER: CREDIT_SECONDS},
            )
        )
    )


def stripe_api(settings: WorkerSettings) -> StripeApi | None:
    """Stripe's API, where there is a key for it."""
    key = settings.stripe_api_key
    return StripeApi(key.get_secret_value(), settings.stripe_api_base) if key else None


async def work(workers: Sequence[Worker], stop: asyncio.Event) -> None:
    """Run workers until told to stop, or until one of them fails; then all of them finish what they have in hand.

    Raises:
        Exception: what the one failed by.
    """
    runs = [asyncio.create_task(worker.run()) for worker in workers]
    told = asyncio.create_task(stop.wait())
    await asyncio.wait([*runs, told], return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    log.info("worker stops")
    await asyncio.gather(*(worker.shutdown() for worker in workers))
    await asyncio.gather(*runs)


async def main() -> None:
    """Run until told to stop.

    Raises:
        SettingsError: the environment lacks something.
        PlansError: the plans file cannot be used.
        RuntimeError: Temporal cannot be reached.
    """
    settings = WorkerSettings.load()
    versions = deployment(settings)
    plans = load_plans(settings.plans_file)
    runtime = metrics_runtime(settings.metrics_address) if settings.metrics_address else None
    meter = runtime.metric_meter if runtime else MetricMeter.noop
    traced = tracing("worker")
    client = await connect(runtime=runtime, interceptors=[traced.interceptor] if traced else [])
    queue, url = settings.task_queue, settings.database_url.get_secret_value()
    endpoints = {
        name: Endpoint(address.get_secret_value(), settings.signing_secrets(name))
        for name, address in settings.delivery_endpoints.items()
    }
    runs = DeliveryRuns(client, queue) if endpoints else None
    announce = runs.announce if runs else None
    count = Counting(SdkMeter(meter), [plan.id for plan in plans], list(endpoints))
    declare_metrics(meter)
    stripe, key = stripe_api(settings), settings.identity_hash_key
    cards = Cards(stripe) if stripe else None
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        database = Database(url, announce=announce, count=count)
        stack.push_async_callback(database.close)
        upkeep_database = Database(url, pool_size=UPKEEP_STEPS_AT_ONCE + len(endpoints), announce=announce, count=count)
        stack.push_async_callback(upkeep_database.close)
        if traced:
            traced.watch_database(database.engine, upkeep_database.engine)
            for each in (database, upkeep_database):
                each.watch_journeys(traced.journey)
            stack.push_async_callback(traced.close)
        if stripe:
            stack.push_async_callback(stripe.close)
        if runs:
            stack.push_async_callback(runs.settle)
        deliveries = Deliveries(upkeep_database, endpoints, await stack.enter_async_context(http_client()))
        upkeep = build_upkeep_worker(
            client,
            queue,
            upkeep_database,
            plans,
            versions,
            stripe=stripe,
            hashes=IdentityHash(key.get_secret_value()) if key else None,
            deliveries=deliveries,
            runs=runs,
        )
        couriers = [build_courier(client, queue, endpoint, deliveries) for endpoint in endpoints]
        log.info("worker started", task_queue=queue, namespace=client.namespace, endpoints=sorted(endpoints))
        referrals = build_worker(client, queue, database, plans, settings.signals, versions, cards=cards)
        workers = [referrals, upkeep, *couriers]
        if settings.health_address:
            ready = health_at(settings.health_address, lambda: all(worker.is_running for worker in workers))
            await stack.enter_async_context(ready)
        await work(workers, stop)


if __name__ == "__main__":
    configure_logs("worker")
    try:
        asyncio.run(main())
    except (SettingsError, PlansError, RuntimeError) as error:
        log.error("worker cannot run", error=str(error))  # noqa: TRY400
        leave(1)
    leave(0)
