"""All workflows by their names, by the worker that carries them out, and the sandbox that they run in."""

from collections.abc import Mapping

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


def workflow_runner() -> SandboxedWorkflowRunner:
    """The sandbox that runs are carried out in."""
    # The rules and messages are pure and light; loading them anew for each run would only cost time.
    return SandboxedWorkflowRunner(
        restrictions=SandboxRestrictions.default.with_passthrough_modules("program", "workflows")
    )
