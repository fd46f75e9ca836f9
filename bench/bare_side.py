"""Drives the bare side, by a plain client of Temporal's."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Sequence
from typing import Any

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest
from temporalio.client import Client, WorkflowHandle

from bench.bare import METRICS, QUEUE, Bare
from bench.program import AT_ONCE, at_once, until
from bench.servers import Process, Servers, counter, polls
from devstack.ports import LOOPBACK, free_port

Handle = WorkflowHandle[Any, Any]

TASKS = "temporal_workflow_task_execution_latency_count"
"""How many workflow tasks a worker has carried out."""


class BareSide:
    """Empty workflows, and the worker that carries them out."""

    def __init__(self, servers: Servers, client: Client) -> None:
        """Drive them through `client`; the worker is not started yet."""
        self._servers = servers
        self._client = client
        self.port = free_port()
        self.last: list[str] = []
        self._run = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self.worker: Process

    def start_worker(self, *, wait: bool = True) -> Process:
        """Start the worker."""
        environment = {
            **self._servers.environments.server,
            "TEMPORAL_ADDRESS": self._servers.temporal_address,
            METRICS: f"{LOOPBACK}:{self.port}",
        }
        self.worker = self._servers.start("bare worker", ["-m", "bench.bare"], environment)
        if wait:
            self.worker.wait_until(lambda: polls(self.port))
        return self.worker

    def tasks(self) -> float:
        """How many workflow tasks the worker has carried out since it was started."""
        return counter(self.port, TASKS, task_queue=QUEUE)

    async def start(self, _: object = None) -> Handle:
        """Start one."""
        return await self._client.start_workflow(
            Bare.run, id=f"bare-{self._run}-{next(self._numbers)}", task_queue=QUEUE
        )

    @staticmethod
    async def tell(handle: Handle) -> None:
        """Signal one."""
        await handle.signal(Bare.tell)

    async def lifecycles(self, number: int) -> float:
        """Take so many from the start to the wait for the timer, step by step; gives how many seconds that took."""
        done, began = self.tasks(), time.perf_counter()
        handles = await at_once(AT_ONCE, range(number), self.start)
        await until(lambda: self.tasks() >= done + number, "all have begun")
        await at_once(AT_ONCE, handles, self.tell)
        await until(lambda: self.tasks() >= done + 2 * number, "all were told once")
        await at_once(AT_ONCE, handles, self.tell)
        await until(lambda: self.tasks() >= done + 3 * number, "all have acted")
        self.last = [handle.id for handle in handles]
        return time.perf_counter() - began

    async def settle(self) -> None:
        """Wait until the worker has nothing more to do."""
        before = -1.0
        while (tasks := self.tasks()) != before:
            before = tasks
            await asyncio.sleep(0.3)

    async def waiting(self, number: int, *, told: int = 1) -> list[Handle]:
        """Some that were told so often, and wait."""
        done = self.tasks()
        handles = await at_once(AT_ONCE, range(number), self.start)
        await until(lambda: self.tasks() >= done + number, "all have begun")
        for time_ in range(1, told + 1):
            await at_once(AT_ONCE, handles, self.tell)
            await until(lambda many=time_ + 1: self.tasks() >= done + many * number, "all were told")  # type: ignore[misc]
        return handles

    async def acted(self, handle: Handle) -> None:
        """Wait until the history says that the step was taken: the server tells as soon as it is written."""
        token = b""
        while True:
            answer = await self._client.workflow_service.get_workflow_execution_history(
                GetWorkflowExecutionHistoryRequest(
                    namespace=self._client.namespace,
                    execution=WorkflowExecution(workflow_id=handle.id),
                    wait_new_event=True,
                    next_page_token=token,
                )
            )
            if any(event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED for event in answer.history.events):
                return
            token = answer.next_page_token


async def history_bytes(client: Client, workflow_ids: Sequence[str]) -> list[int]:
    """How large the histories of runs are, as the server counts them."""

    async def size(workflow_id: str) -> int:
        description = await client.get_workflow_handle(workflow_id).describe()
        return int(description.raw_description.workflow_execution_info.history_size_bytes)

    return await at_once(AT_ONCE, workflow_ids, size)
