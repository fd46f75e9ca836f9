"""Reconciliation: what Stripe told of and nobody heard, found and applied."""

from dataclasses import replace

from temporalio import workflow

from workflows import policies, reconciliation_messages
from workflows.activities import ReconciliationActivities
from workflows.reconciliation_messages import Progress, Reconciled, ReconciliationStart, Span


@workflow.defn(name=reconciliation_messages.RECONCILIATION)
class ReconciliationWorkflow:
    """Reads the events since the last time, tells who was not told, and compares the invoices of those who wait."""

    @workflow.init
    def __init__(self, start: ReconciliationStart) -> None:
        """Begin, or go on with the state of the run before."""
        self._start = start

    @workflow.run
    async def run(self, _: ReconciliationStart) -> Reconciled:
        """Reconcile; the answer is what was mended."""
        progress = self._start.progress or await self._begin()
        if progress is None:
            return Reconciled(possible=False)
        await self._read_events(progress)
        await self._tell_the_untold(progress)
        await self._compare_invoices(progress)
        await workflow.execute_activity_method(
            ReconciliationActivities.report_reconciliation,
            progress,
            summary="log what was mended",
            **policies.RECONCILIATION_STEP,
        )
        return Reconciled(possible=True, progress=progress)

    async def _begin(self) -> Progress | None:
        return await workflow.execute_activity_method(
            ReconciliationActivities.begin_reconciliation,
            self._start,
            summary="since when were events not read?",
            **policies.RECONCILIATION_STEP,
        )

    async def _read_events(self, progress: Progress) -> None:
        """Read span after span, the oldest first: Stripe lists the newest first, so only a whole span is done with."""
        while progress.since < progress.until:
            end = min(progress.since + policies.EVENTS_SPAN, progress.until)
            read = await workflow.execute_activity_method(
                ReconciliationActivities.apply_events,
                Span(progress.since, end, progress.events_after, progress.advances),
                summary=f"apply what was never handled before {end:%Y-%m-%d %H:%M}",
                **policies.RECONCILIATION_STEP,
            )
            progress.events += read.applied
            progress.unreadable += read.unreadable
            progress.events_after = read.after
            if read.after is None:
                progress.since = end
            self._go_on(progress)

    async def _tell_the_untold(self, progress: Progress) -> None:
        while not progress.told_all:
            told = await workflow.execute_activity_method(
                ReconciliationActivities.tell_the_untold,
                summary="tell the runs of what was applied and never told",
                **policies.RECONCILIATION_STEP,
            )
            progress.told += told
            progress.told_all = told == 0
            self._go_on(progress)

    async def _compare_invoices(self, progress: Progress) -> None:
        """Compare the next referrals in turn; after a gap all that are left of the round."""
        while progress.gap or progress.referrals < self._start.referrals:
            compared = await workflow.execute_activity_method(
                ReconciliationActivities.compare_invoices,
                summary="the paid invoices of friends whose payment is waited for",
                **policies.RECONCILIATION_STEP,
            )
            progress.referrals += compared.referrals
            progress.invoices += compared.invoices
            progress.unreadable += compared.unreadable
            if compared.round_over:
                return
            self._go_on(progress)

    def _go_on(self, progress: Progress) -> None:
        """Go on in a new run where the history has grown long."""
        if workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(replace(self._start, progress=progress))
