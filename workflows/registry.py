"""All workflows by their names, by the worker that carries them out, and how their code is run."""

from collections.abc import Mapping

from temporalio.worker import UnsandboxedWorkflowRunner, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from workflows import deliveries, jobs, messages, reconciliation_messages
from workflows.delivery import DeliveryWorkflow
from workflows.reconciliation import ReconciliationWorkflow
from workflows.referral import ReferralWorkflow
from workflows.review import ReviewWorkflow
from workflows.upkeep import RemindersWorkflow, SweepWorkflow

REFERRALS: Mapping[str, type] = {messages.WORKFLOW: ReferralWorkflow, messages.REVIEW_WORKFLOW: ReviewWorkflow}
"""The lives of referrals."""

UPKEEP: Mapping[str, type] = {
    deliveries.WORKFLOW: DeliveryWorkflow,
    jobs.REMINDERS: RemindersWorkflow,
    reconciliation_messages.RECONCILIATION: ReconciliationWorkflow,
    jobs.SWEEP: SweepWorkflow,
}
"""What is done beside them."""


def workflow_runner() -> WorkflowRunner:
    """What workers carry runs out with: no sandbox, which takes a ninth of their CPU; :func:`sandbox` is for checks."""
    return UnsandboxedWorkflowRunner()


def sandbox() -> WorkflowRunner:
    """The SDK's sandbox, for checks: a run that asks the machine for the time, a file or a number at random fails.

    What is told to runs and what the rules say is imported once for all, or an account's stage would not be the same
    kind of thing inside and outside. Everything else of the workflows is loaded anew for each run, and watched.
    """
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*_SHARED))


_SHARED = (
    "program",
    "workflows.activities",
    "workflows.deliveries",
    "workflows.jobs",
    "workflows.messages",
    "workflows.reconciliation_messages",
)
