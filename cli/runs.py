"""The ledger and a referral's run, side by side."""

from dataclasses import replace
from urllib.parse import quote

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.client import Client
from temporalio.service import RPCError

from program.referral import Stage
from workflows.client import Run

LAST_EVENTS = 10
"""Of a history, so many are looked through for why the next step fails."""

LONGEST_WORDS = 240
"""How much is told of a failure, in letters."""

NONDETERMINISM = "the code does not fit what the history says was done"
"""What Temporal calls nondeterminism, in words."""


def waits_for_its_run(stage: Stage, *, voided: bool) -> bool:
    """Whether something can still become of an attributed referral, so that a run has to be open for it."""
    return stage.open and stage is not Stage.CLICKED and not voided


def disagreement(stage: Stage, run: Run | None, *, voided: bool) -> str | None:
    """Where the ledger and a referral's run say different things; none where they agree.

    A step that was just carried out is in the ledger a moment before the run knows.

    Args:
        stage: the referral's stage in the ledger.
        run: how its run stands; none where Temporal knows none.
        voided: whether the referral was voided.
    """
    waits = waits_for_its_run(stage, voided=voided)
    if run is None:
        return f"the ledger waits at {stage}, and Temporal knows no run" if waits or stage is Stage.CLICKED else None
    known = run.stage or Stage.CLICKED
    if not run.open and (waits or stage is Stage.CLICKED):
        return f"the ledger waits at {stage}, and the run is over ({run.status.lower()}, at {known})"
    if run.open and not waits and stage is not Stage.CLICKED:
        return f"the ledger says that it is over ({stage}), and the run is open at {known}"
    if known is not stage:
        return f"the ledger says {stage}, and the run {known}"
    return None


def link(ui_url: str | None, namespace: str, run: Run) -> str | None:
    """The address of a run in Temporal's Web UI; none where nobody said where that is."""
    if ui_url is None:
        return None
    return f"{ui_url}/namespaces/{quote(namespace)}/workflows/{quote(run.workflow_id)}/{quote(run.run_id)}/history"


async def explained(client: Client, run: Run) -> Run:
    """The run, with the reason why its next step fails where its history has one: a description does not."""
    if not run.open or run.problem is None or "step failed" not in run.problem:
        return run
    request = GetWorkflowExecutionHistoryReverseRequest(
        namespace=client.namespace,
        execution=WorkflowExecution(workflow_id=run.workflow_id, run_id=run.run_id),
        maximum_page_size=LAST_EVENTS,
    )
    try:
        answer = await client.workflow_service.get_workflow_execution_history_reverse(request)
    except RPCError:
        return run
    for event in answer.history.events:
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
            failed = event.workflow_task_failed_event_attributes
            words = (failed.failure.message.strip().splitlines() or [""])[0][:LONGEST_WORDS]
            if failed.cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR:
                words = f"{NONDETERMINISM} ({words})"
            return replace(run, problem=f"{run.problem.partition(':')[0]}: {words}")
    return run
