"""Histories of real runs as files that can be kept and replayed: without machine names, paths or error texts."""

import asyncio
import json
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowHistory

RECORDED = "recorded"
"""Stands wherever something was left out."""


def without_traces(history: WorkflowHistory) -> str:
    """The history as JSON without what only tells about the machines that it came from.

    Workers' identities, sticky queues, stack traces and the texts of failures are left out; a replay needs none.
    Payloads stay as they are: the program puts nothing personal into them (rule 24).
    """
    return json.dumps(_scrubbed(json.loads(history.to_json())), indent=1) + "\n"


def _scrubbed(value: Any) -> Any:
    if isinstance(value, list):
        return [_scrubbed(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _scrubbed(one) for key, one in value.items() if key != "stackTrace"}
    if "identity" in kept:
        kept["identity"] = RECORDED
    if kept.get("kind") == "TASK_QUEUE_KIND_STICKY":
        kept["name"] = RECORDED
    if "message" in kept and ("source" in kept or "cause" in kept):
        kept["message"] = RECORDED
    return kept


async def record_history(client: Client, workflow_id: str, file: Path, run_id: str | None = None) -> int:
    """Write the history of a run into a file that `temporalio.worker.Replayer` can replay.

    Args:
        client: knows the namespace.
        workflow_id: of the referral's run, `referral-…`.
        file: written anew; its folder is made.
        run_id: one run of several that went on for each other; by default the newest.

    Returns:
        The number of events.

    Raises:
        RPCError: Temporal cannot be reached, or does not know the run.
        OSError: the file cannot be written.
    """
    history = await client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
    await asyncio.to_thread(_write, file, without_traces(history))
    return len(history.events)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
