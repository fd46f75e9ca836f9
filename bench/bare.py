"""The side that does nothing: an empty workflow, driven plainly. What the engine gives to a straightforward design.

It is started at the click, without a delay, told twice, takes one step that does nothing, and waits for a timer. Its
worker has the SDK's own settings, and no sandbox, for the program's has none: `python -m bench.bare`.
"""

import asyncio
import os
import signal
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

QUEUE = "bare"
METRICS = "BENCH_METRICS_ADDRESS"
"""In the environment: where the worker's metrics are to be."""

LONG = timedelta(days=30)
"""As long as a bonus waits for its end."""


@activity.defn
async def nothing() -> None:
    """Do nothing."""


@workflow.defn(name="Bare")
class Bare:
    """Two signals, one local activity, one timer."""

    def __init__(self) -> None:
        self._told = 0

    @workflow.run
    async def run(self) -> None:
        """Wait to be told twice, act, and wait for an end that is far away."""
        await workflow.wait_condition(lambda: self._told >= 2)
        await workflow.execute_local_activity(nothing, start_to_close_timeout=timedelta(seconds=2))
        await workflow.sleep(LONG)

    @workflow.signal
    def tell(self) -> None:
        """Be told."""
        self._told += 1


async def main() -> None:
    """Run the worker until told to stop."""
    metrics = PrometheusConfig(bind_address=os.environ[METRICS])
    client = await Client.connect(
        os.environ["TEMPORAL_ADDRESS"], runtime=Runtime(telemetry=TelemetryConfig(metrics=metrics))
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = UnsandboxedWorkflowRunner()
    async with Worker(client, task_queue=QUEUE, workflows=[Bare], activities=[nothing], workflow_runner=runner):
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
    # The SDK's threads may outlive the interpreter otherwise; see `runtime.temporal.leave`.
    os._exit(0)
