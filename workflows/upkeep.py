"""What Schedules have done regularly, beside the referrals' own runs."""

import asyncio

from temporalio import workflow

from workflows import jobs, policies
from workflows.activities import UpkeepActivities


@workflow.defn(name=jobs.SWEEP)
class SweepWorkflow:
    """Every minute: what a crash left undelivered, and what is too old to be kept."""

    @workflow.run
    async def run(self) -> int:
        """Sweep; the answer is how many deliveries were started."""
        starting = workflow.execute_activity_method(
            UpkeepActivities.start_deliveries, summary="deliver what nobody delivers", **policies.SWEEP_STEP
        )
        tidying = workflow.execute_activity_method(
            UpkeepActivities.tidy_outbox, summary="throw away what is old", **policies.SWEEP_STEP
        )
        started, _ = await asyncio.gather(starting, tidying)
        return started


@workflow.defn(name=jobs.REMINDERS)
class RemindersWorkflow:
    """Once a day: who waits for an operator, and whose bonus ends soon."""

    @workflow.run
    async def run(self) -> None:
        """Remind of both; neither waits for the other."""
        reviews = workflow.execute_activity_method(
            UpkeepActivities.remind_of_reviews,
            summary="log each referral that waits for an operator (rules 19 and 20)",
            **policies.UPKEEP_STEP,
        )
        expiring = workflow.execute_activity_method(
            UpkeepActivities.remind_of_expiring,
            summary="tell the owner of each bonus that ends within three days",
            **policies.UPKEEP_STEP,
        )
        await asyncio.gather(reviews, expiring)
