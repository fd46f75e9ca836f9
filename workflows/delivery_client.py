"""How other programs have a message delivered."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError

from workflows.deliveries import WORKFLOW, DeliveryOrder, run_id
from workflows.policies import upkeep_queue

_START_AT_ONCE = 8

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class DeliveryRuns:
    """Starts deliveries."""

    def __init__(self, client: Client, task_queue: str, *, timeout: timedelta = timedelta(seconds=5)) -> None:
        """Start runs through `client`, beside `task_queue`; each call to Temporal gets `timeout`."""
        self._client = client
        self._queue = upkeep_queue(task_queue)
        self._timeout = timeout
        self._turns = asyncio.Semaphore(_START_AT_ONCE)
        self._under_way: set[asyncio.Task[None]] = set()

    def announce(self, message_ids: Sequence[str]) -> None:
        """Have messages delivered that were just written, without waiting for it; the sweep takes what fails here."""
        for message_id in message_ids:
            task = asyncio.create_task(self._try(message_id))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def start(self, order: DeliveryOrder, *, anew: bool = False) -> None:
        """Start a delivery, if it is not under way. One that is asked for again takes the place of the one before.

        Args:
            order: which.
            anew: one that is under way begins anew, with those that have not taken it yet.

        Raises:
            RPCError: Temporal could not be reached, or refused.
        """
        conflict = (
            WorkflowIDConflictPolicy.TERMINATE_EXISTING
            if order.again or anew
            else WorkflowIDConflictPolicy.USE_EXISTING
        )
        await self._client.start_workflow(
            WORKFLOW,
            order,
            id=run_id(order.message_id),
            task_queue=self._queue,
            id_conflict_policy=conflict,
            static_summary=f"Deliver {order.message_id}" + (" again" if order.again else ""),
            rpc_timeout=self._timeout,
        )

    async def settle(self) -> None:
        """Wait for what was announced to be started, or to have failed."""
        await asyncio.gather(*self._under_way)

    async def _try(self, message_id: str) -> None:
        try:
            async with self._turns, asyncio.timeout(self._timeout.total_seconds()):
                await self.start(DeliveryOrder(message_id))
        except (RPCError, RuntimeError, TimeoutError) as error:
            log.warning("delivery not started; the sweep will", message_id=message_id, error=type(error).__name__)
