"""The jobs that Schedules start: which there are, on which queue, how often."""

from dataclasses import dataclass

from workflows import policies
from workflows.policies import JobTimes, upkeep_queue
from workflows.reconciliation_messages import RECONCILIATION, RECONCILIATION_ID, ReconciliationStart

__all__ = ["JOBS", "REMINDERS", "SWEEP", "Job", "upkeep_queue"]

SWEEP = "SweepWorkflow"
REMINDERS = "RemindersWorkflow"


@dataclass(frozen=True)
class Job:
    """One job with a Schedule of its own.

    Args:
        schedule_id: of the Schedule; its runs' ids begin with it.
        workflow: the name of the workflow.
        summary: what it is for, in a line for operators.
        times: how often, and how long a run may take.
        argument: what each run begins with; none for a workflow without input.
    """

    schedule_id: str
    workflow: str
    summary: str
    times: JobTimes
    argument: object | None = None


JOBS: tuple[Job, ...] = (
    Job("referrals-sweep", SWEEP, "deliver what a crash left, throw away what is old", policies.SWEEP),
    Job("referrals-reminders", REMINDERS, "who waits for an operator, whose bonus ends soon", policies.REMINDERS),
    Job(
        RECONCILIATION_ID,
        RECONCILIATION,
        "reconciliation: what Stripe told of and nobody heard",
        policies.RECONCILIATION,
        ReconciliationStart(),
    ),
)
"""Every job that a deployment has a Schedule for."""
