"""Starts a reconciliation by hand and waits for it."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from workflows.jobs import upkeep_queue
from workflows.reconciliation_messages import BY_HAND_ID, RECONCILIATION, Progress, Reconciled, ReconciliationStart

LOOK = timedelta(seconds=5)
"""How often it is looked why a reconciliation does not come to its end."""


class AlreadyRunningError(Exception):
    """One that was started by hand is under way, and reads from another time on."""


async def reconcile(
    client: Client, task_queue: str, since: datetime | None, say: Callable[[str], None], *, look: timedelta = LOOK
) -> Reconciled:
    """Start a reconciliation and wait for its end; one that is under way is waited for. It goes on without the waiting.

    Args:
        client: knows the namespace.
        task_queue: that of the referrals.
        since: from when on events are read, UTC; without it from where the last one ended.
        say: hears what keeps it from its end.
        look: how often that is looked for.

    Raises:
        AlreadyRunningError: one is under way, and it was not asked to read from `since` on.
        WorkflowFailureError: it was ended from outside.
        RPCError: Temporal cannot be reached, or refuses.
    """
    try:
        handle = await client.start_workflow(
            RECONCILIATION,
            ReconciliationStart(since),
            id=BY_HAND_ID,
            task_queue=upkeep_queue(task_queue),
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING
            if since is None
            else WorkflowIDConflictPolicy.FAIL,
            static_summary="reconciliation, started by hand",
            result_type=Reconciled,
        )
    except WorkflowAlreadyStartedError:
        raise AlreadyRunningError(
            f"one that was started by hand is under way: wait for it without --since, or end the run {BY_HAND_ID}"
        ) from None
    say(f"reconciling: the run is {BY_HAND_ID}")
    return await _end_of(handle, say, look)


async def _end_of(handle: WorkflowHandle[Any, Reconciled], say: Callable[[str], None], look: timedelta) -> Reconciled:
    ending = asyncio.ensure_future(handle.result())
    said: str | None = None
    try:
        while not (await asyncio.wait([ending], timeout=look.total_seconds()))[0]:
            holding_up = await _holding_up(handle)
            if holding_up not in (None, said):
                say(f"still waiting: {holding_up}")
            said = holding_up
        return await ending
    finally:
        ending.cancel()


async def _holding_up(handle: WorkflowHandle[Any, Any]) -> str | None:
    """What keeps a run from its end, as Temporal sees it; none where nothing does."""
    description = (await handle.describe()).raw_description
    for step in description.pending_activities:
        if step.HasField("last_failure"):
            return f"{step.activity_type.name} failed: {step.last_failure.message}; it is tried again"
        if not step.HasField("last_started_time"):
            return "no worker takes up its steps; are the workers running?"
    if description.HasField("pending_workflow_task"):
        return "no worker takes it up; are the workers running?"
    return None


def mended(progress: Progress) -> list[str]:
    """What a reconciliation mended, line by line."""
    lines = [
        f"events applied that no webhook had handled: {progress.events}",
        f"events applied before whose referrals were told now: {progress.told}",
        f"referrals that wait for a payment, compared with Stripe's invoices: {progress.referrals}",
        f"paid invoices found that no event had told of: {progress.invoices}",
    ]
    if progress.unreadable:
        lines.append(f"events and invoices that cannot be read: {progress.unreadable}; the workers' log says which")
    if progress.gap:
        lines.append("events of more than 30 days ago were missed, and Stripe has them no more: referrals import")
    return lines
