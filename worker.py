"""The worker: carries out the runs of all referrals. `python worker.py`."""

import asyncio
import signal
from collections.abc import Sequence
from datetime import timedelta

import structlog
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.worker import Interceptor, Worker, WorkerDeploymentConfig
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.referral import LedgerActivities
from ledger.database import Database
from program.plans import Plans, PlansError, load_plans
from runtime.logs import configure_logs
from runtime.settings import SettingsError, WorkerSettings
from runtime.temporal import connect, leave
from workflows.referral import ReferralWorkflow

GRACEFUL_SHUTDOWN = timedelta(seconds=20)
"""How long steps under way may take to finish when the worker is told to stop."""

STICKY = timedelta(seconds=3)
"""How long a run waits for the worker that has it in memory. After a crash, another one takes it up after that."""

STEPS_AT_ONCE = 10
"""Of each kind, local and regular: each step holds a connection, and the pool has twice as many."""

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


def workflow_runner() -> SandboxedWorkflowRunner:
    """The sandbox that runs are carried out in."""
    # The rules and messages are pure and light; loading them anew for each run would only cost time.
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules("program", "workflows")
    )


def build_worker(
    client: Client,
    task_queue: str,
    database: Database,
    plans: Plans,
    versions: WorkerDeploymentConfig | None = None,
    interceptors: Sequence[Interceptor] = (),
) -> Worker:
    """Put a worker together: the workflow, and its steps on the ledger."""
    steps = LedgerActivities(database, plans)
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[ReferralWorkflow],
        activities=[steps.attribute_signup, steps.credit_both, steps.expire_bonuses],
        workflow_runner=workflow_runner(),
        deployment_config=versions,
        interceptors=interceptors,
        graceful_shutdown_timeout=GRACEFUL_SHUTDOWN,
        sticky_queue_schedule_to_start_timeout=STICKY,
        max_concurrent_activities=STEPS_AT_ONCE,
        max_concurrent_local_activities=STEPS_AT_ONCE,
    )


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
    runtime = None
    if settings.metrics_address:
        runtime = Runtime(telemetry=TelemetryConfig(metrics=PrometheusConfig(bind_address=settings.metrics_address)))
    client = await connect(runtime=runtime)
    database = Database(settings.database_url.get_secret_value())
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with build_worker(client, settings.task_queue, database, plans, versions):
            log.info("worker started", task_queue=settings.task_queue, namespace=client.namespace)
            await stop.wait()
            log.info("worker stops")
    finally:
        await database.close()


if __name__ == "__main__":
    configure_logs("worker")
    try:
        asyncio.run(main())
    except (SettingsError, PlansError, RuntimeError) as error:
        log.error("worker cannot run", error=str(error))  # noqa: TRY400
        leave(1)
    leave(0)
