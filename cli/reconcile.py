"""Starts a reconciliation by hand and waits for it."""

from collections.abc import Callable
from datetime import datetime, timedelta

from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from cli.waiting import LOOK, waited_for
from workflows.client import holding_up
from workflows.jobs import upkeep_queue
from workflows.reconciliation_messages import BY_HAND_ID, RECONCILIATION, Progress, Reconciled, ReconciliationStart


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

    async def problem() -> str | None:
        return holding_up(await handle.describe())

    return await waited_for(handle.result(), problem, say, look=look)


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
