"""An operator decides about a referral whose own run is closed: `referral-{id}-review` (rule 20)."""

from typing import Any

from temporalio import workflow

from program.referral import Stage
from workflows import messages, steps, story
from workflows.activities import ReferralActivities
from workflows.decisions import Decisions, check_review, check_void
from workflows.messages import Decided, Outcome, PaymentReversed, Review, Reviewed, ReviewStart, Void


@workflow.defn(name=messages.REVIEW_WORKFLOW)
class ReviewWorkflow:
    """Waits for a decision, for as long as it takes: nothing is decided by the passing of time."""

    @workflow.init
    def __init__(self, start: ReviewStart) -> None:
        """Begin with what is known of the referral."""
        self._start = start
        self._reasons = [str(reason) for reason in start.reasons]
        self._decisions = Decisions(start.referral_id)
        self._failing: str | None = None

    @workflow.run
    async def run(self, _: ReviewStart) -> Outcome:
        """Wait for a decision that can be carried out; the answer is what became of it."""
        self._show()
        while True:
            await workflow.wait_condition(lambda: self._decisions.waiting)
            decision = self._decisions.next
            decided = await self._decide()
            if decided.credit is not None and decided.at is not None:
                outcome = Outcome(decided.credit.stage, decided.credit.reason, decided.voided_minutes)
                review = Reviewed(decision.action, decision.by, decision.note, decided.at)
                workflow.set_current_details(story.reviewed_details(self._start, review, outcome))
                await workflow.wait_condition(workflow.all_handlers_finished)
                return outcome

    @workflow.signal(name=messages.REVERSED, description="The qualifying payment was refunded or is disputed.")
    def reversed(self, payment: PaymentReversed) -> None:
        """Record one more reason to look at it."""
        if payment.reason not in self._reasons:
            self._reasons.append(str(payment.reason))
            self._show()

    @workflow.update(
        name=messages.REVIEW, description="Approve: the bonus stands. Say who decides, and why: ids, no names."
    )
    async def review(self, asked: Review) -> Outcome:
        """Let the bonus stand."""
        return await self._decisions.carry_out(asked)

    @review.validator
    def _check_review(self, asked: Review) -> None:
        # What the ledger marked it for is known there; here it may be an operator's own idea to look.
        check_review(asked, self._start.stage, self._reasons)

    @workflow.update(
        name=messages.VOID, description="Take back what is unused. Say who decides, and why: ids, no names."
    )
    async def void(self, asked: Void) -> Outcome:
        """Take back what is unused; what was used stays used (rule 20)."""
        return await self._decisions.carry_out(asked)

    @void.validator
    def _check_void(self, asked: Void) -> None:
        check_void(asked, self._start.stage)

    async def _decide(self) -> Decided:
        decided = await self._carried_out()
        self._decisions.carried_out(decided)
        return decided

    async def _carried_out(self) -> Decided:
        summary, decision = f"carry out: {self._decisions.next.action} (rule 20)", self._decisions.next
        return await steps.perform(ReferralActivities.decide, decision, summary, self._show_failing)

    def _show_failing(self, words: str | None) -> None:
        self._failing = words
        workflow.upsert_search_attributes([messages.reasons_shown(self._shown_reasons())])
        workflow.set_current_details(story.review_details(self._start, self._reasons, self._failing))

    def _shown_reasons(self) -> list[str]:
        return [*self._reasons, *([messages.STEP_FAILING] if self._failing else [])]

    def _show(self) -> None:
        changes: list[Any] = [messages.REFERRAL_STAGE.value_set(Stage(self._start.stage))]
        if self._start.referrer:
            changes.append(messages.REFERRER_ACCOUNT.value_set(self._start.referrer))
        if self._start.referee:
            changes.append(messages.REFEREE_ACCOUNT.value_set(self._start.referee))
        if self._reasons:
            changes.append(messages.REVIEW_REASONS.value_set(self._shown_reasons()))
        workflow.upsert_search_attributes(changes)
        workflow.set_current_details(story.review_details(self._start, self._reasons, self._failing))
