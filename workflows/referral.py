"""The life of one referral: a click, the friend's signup, the first payment, both bonuses, their expiry."""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

from program.doubts import Action, in_words
from program.eligibility import LAPSED_WORDS
from program.referral import Role, Stage
from workflows import messages, policies, steps, story
from workflows.activities import ReferralActivities
from workflows.decisions import Decisions, check_review, check_void
from workflows.messages import (
    AccountErased,
    Bonus,
    CycleMoved,
    LookAgain,
    Outcome,
    PaymentReported,
    PaymentReversed,
    ReferralStart,
    ReferralState,
    Review,
    Reviewed,
    ReviewStart,
    SignupReported,
    Void,
)

Answer = TypeVar("Answer")


@workflow.defn(name=messages.WORKFLOW)
class ReferralWorkflow:
    """One referral from the click to the expiry of both bonuses. Handlers only record; `run` alone advances."""

    @workflow.init
    def __init__(self, start: ReferralStart) -> None:
        """Begin with a click, or go on with the state of the run before."""
        self._start = start
        self._state = start.state or ReferralState()
        self._not_due_before = start.clicked_at
        self._decisions = Decisions(start.referral_id)
        self._failing: str | None = None

    @workflow.run
    async def run(self, _: ReferralStart) -> ReferralState:
        """Live the referral's life; the answer is how it ended."""
        self._show()
        if not await self._signup_comes():
            self._lapse()
        elif await self._signup_counts() and await self._first_payment_credits_both():
            await self._both_bonuses_expire()
        await self._answer_operators()
        await self._leave_doubts_to_a_review()
        return self._state

    @workflow.signal(name=messages.SIGNUP, description="The friend signed up: the account reserved for this referral.")
    def signup(self, signup: SignupReported) -> None:
        """Record whose signup it is; the same one again changes nothing."""
        self._state.referee = self._state.referee or signup.account_id

    @workflow.signal(name=messages.PAYMENT, description="A payment of the friend is on record: look whether it counts.")
    def payment(self, _: PaymentReported) -> None:
        """Record that there is something to look at; the ledger knows what."""
        self._state.payments_reported += 1

    @workflow.signal(name=messages.CYCLE_MOVED, description="A billing cycle moved and takes a bonus's expiry along.")
    def cycle_moved(self, moved: CycleMoved) -> None:
        """Record the later expiry; nothing ever makes one earlier (rule 9)."""
        bonus = self._state.bonuses.get(moved.role)
        if bonus is not None:
            bonus.expires_at = max(bonus.expires_at, moved.expires_at)

    @workflow.signal(name=messages.REVERSED, description="The qualifying payment was refunded or is disputed.")
    def reversed(self, payment: PaymentReversed) -> None:
        """Show why the bonus is in doubt; the ledger has marked it, and nothing is taken back by itself (rule 20)."""
        if payment.reason not in self._state.review_reasons:
            self._state.review_reasons.append(str(payment.reason))
            self._state.needs_attention = f"For review: {in_words(story.doubts_of(self._state.review_reasons))}"
            self._show(messages.REVIEW_REASONS.value_set(self._shown_reasons()))

    @workflow.signal(name=messages.ACCOUNT_ERASED, description="An account of the referral was erased: look again.")
    def account_erased(self, _: AccountErased) -> None:
        """Record that there is something to look at; the ledger knows what (rule 23)."""
        self._state.payments_reported += 1
        self._state.bonuses_to_look_at = True

    @workflow.signal(name=messages.LOOK_AGAIN, description="An operator asks to look again, at once.")
    def look_again(self, _: LookAgain) -> None:
        """Record that there is something to look at; what was done already is read, not done again."""
        self._state.payments_reported += 1
        self._state.bonuses_to_look_at = True

    @workflow.update(
        name=messages.REVIEW, description="Approve or reject what is in doubt. Say who decides, and why: ids, no names."
    )
    async def review(self, asked: Review) -> Outcome:
        """Decide about a referral that is held or marked (rules 19 and 20)."""
        return await self._decisions.carry_out(asked)

    @review.validator
    def _check_review(self, asked: Review) -> None:
        check_review(asked, self._state.stage, story.doubts_of(self._state.review_reasons))

    @workflow.update(
        name=messages.VOID, description="End it, or take back what is unused. Say who decides, and why: ids, no names."
    )
    async def void(self, asked: Void) -> Outcome:
        """End the referral before the credit, or take back what is unused after it (rule 20)."""
        return await self._decisions.carry_out(asked)

    @void.validator
    def _check_void(self, asked: Void) -> None:
        check_void(asked, self._state.stage)

    @workflow.query(name=messages.STATE, description="Everything that the run knows about the referral.")
    def state(self) -> ReferralState:
        """The full state."""
        return self._state

    async def _signup_comes(self) -> bool:
        """Wait for the signup; without one the referral lapses (rule 15)."""
        while not self._signed_up() and workflow.now() < self._start.lapses_at:
            await self._until(self._signed_up, self._start.lapses_at, "no signup by now: the referral lapses")
        return self._signed_up()

    async def _signup_counts(self) -> bool:
        """Attribute the signup, or end with the reason why not (rules 10, 15 and 18)."""
        if self._state.stage is Stage.CLICKED:
            attribution = await self._perform(
                ReferralActivities.attribute_signup, "does the signup count? (rules 10, 15, 18)"
            )
            self._state.stage, self._state.reason = attribution.stage, attribution.reason
            self._state.signed_up_at = attribution.signed_up_at
            self._state.payments_reported += attribution.payment_known
            self._show(messages.REFEREE_ACCOUNT.value_set(str(self._state.referee)))
        return self._state.stage.attributed

    async def _first_payment_credits_both(self) -> bool:
        """Wait for the first real payment, and credit both sides for it, or hold it (rules 3 to 8, 14 and 19)."""
        while self._state.stage in (Stage.SIGNED_UP, Stage.IN_REVIEW):
            mends_itself = self._state.needs_attention and self._state.stage is Stage.SIGNED_UP
            look_again = workflow.now() + policies.LOOK_AGAIN if mends_itself else None
            await self._until(self._payment_or_decision, look_again, "look again whether the plan is known now")
            if self._decisions.waiting:
                await self._decide()
                continue
            self._state.payments_looked_at = self._state.payments_reported
            self._take_credit(
                await self._perform(ReferralActivities.credit_both, "credit both sides, once and together (rules 3-8)")
            )
        return bool(self._state.bonuses)

    def _take_credit(self, credit: messages.Credit) -> None:
        state, reasons = self._state, [str(reason) for reason in credit.review_reasons]
        as_before = (state.stage, state.reason, state.needs_attention, state.review_reasons)
        if (credit.stage, credit.reason, credit.needs_attention, reasons) == as_before:
            return
        changes: list[Any] = []
        if reasons != state.review_reasons:
            changes.append(messages.reasons_shown(reasons))
        state.stage, state.reason, state.needs_attention = credit.stage, credit.reason, credit.needs_attention
        state.review_reasons = reasons
        if credit.expires_at and not state.bonuses:
            state.bonuses = {role: Bonus(credit.minutes, expires_at) for role, expires_at in credit.expires_at.items()}
            state.plan, state.credited_at = credit.plan, credit.credited_at
            changes += [messages.PLAN.value_set(str(credit.plan)), self._next_expiry()]
        self._show(*changes)

    async def _decide(self) -> None:
        """Carry out what an operator decided, and let the operator know what became of it (rules 19 and 20)."""
        decision = self._decisions.next
        decided = await self._perform(
            ReferralActivities.decide, f"carry out an operator's decision: {decision.action} (rules 19, 20)", decision
        )
        if decided.credit is not None and decided.at is not None:
            self._state.reviews.append(Reviewed(decision.action, decision.by, decision.note, decided.at))
            # The ledger may be ahead of this run: then the bonuses are news as well.
            self._take_credit(decided.credit)
            for role, minutes in decided.voided_minutes.items():
                self._state.bonuses[role].voided_minutes = minutes
            # What is left of the other side shows as soon as it is looked at.
            if decision.action is Action.VOID:
                self._state.bonuses_to_look_at = bool(self._open_bonuses())
            self._show()
        self._decisions.carried_out(decided)

    async def _answer_operators(self) -> None:
        """What operators decided in the last moment is still carried out, or refused in words, before the run ends."""
        while not workflow.all_handlers_finished():
            await workflow.wait_condition(lambda: self._decisions.waiting or workflow.all_handlers_finished())
            if self._decisions.waiting:
                await self._decide()

    async def _leave_doubts_to_a_review(self) -> None:
        """What an operator has not decided by the end waits on in a run of its own (rule 20)."""
        doubts = story.doubts_of(self._state.review_reasons)
        if self._state.bonuses and doubts:
            review = ReviewStart(
                self._start.referral_id, self._start.referrer, self._state.referee, self._state.stage, doubts
            )
            with suppress(WorkflowAlreadyStartedError):
                await workflow.start_child_workflow(
                    messages.REVIEW_WORKFLOW,
                    review,
                    id=messages.review_id(self._start.referral_id),
                    parent_close_policy=ParentClosePolicy.ABANDON,
                    static_summary=f"Review of referral-{self._start.referral_id}",
                )

    async def _both_bonuses_expire(self) -> None:
        """Sleep until the next bonus is due, expire it, and so on until both are over (rules 7, 9 and 20)."""
        while self._open_bonuses():
            await self._sleep_until_due()
            if self._decisions.waiting:
                await self._decide()
                continue
            self._state.bonuses_to_look_at = False
            self._take_expiry(await self._perform(ReferralActivities.expire_bonuses, "expire what is due (rule 7)"))

    async def _sleep_until_due(self) -> None:
        come = False
        while not come and not self._bonus_or_decision():
            come = await self._sleep_until_moved(self._open_bonuses())

    async def _sleep_until_moved(self, known: dict[Role, datetime]) -> bool:
        due = max(min(known.values()), self._not_due_before)
        sides = " and ".join(role for role, expires_at in known.items() if expires_at <= due)
        come = await self._until(
            lambda: self._open_bonuses() != known or self._bonus_or_decision(), due, f"the bonus of the {sides} expires"
        )
        if self._open_bonuses() != known:
            self._show(self._next_expiry())
        return come

    def _take_expiry(self, expiry: messages.Expiry) -> None:
        for role, minutes in expiry.expired_minutes.items():
            self._state.bonuses[role].expired_minutes = minutes
        for role, minutes in expiry.voided_minutes.items():
            self._state.bonuses[role].voided_minutes = minutes
        for role, open_bonus in expiry.open.items():
            bonus = self._state.bonuses[role]
            bonus.expires_at = max(bonus.expires_at, open_bonus.expires_at)
        self._state.stage = expiry.stage
        if expiry.open:
            # The database's clock decides, and it may be behind this one: sleep on, never less than a second.
            due_in = min(open_bonus.due_in for open_bonus in expiry.open.values())
            self._not_due_before = workflow.now() + max(due_in, policies.SHORTEST_SLEEP)
        self._show(*([self._next_expiry()] if expiry.open else []))

    def _lapse(self) -> None:
        self._state.stage, self._state.reason = Stage.LAPSED, LAPSED_WORDS
        self._show()

    def _signed_up(self) -> bool:
        return self._state.referee is not None

    def _payment_or_decision(self) -> bool:
        return self._state.payments_reported > self._state.payments_looked_at or self._decisions.waiting

    def _bonus_or_decision(self) -> bool:
        return self._state.bonuses_to_look_at or self._decisions.waiting

    def _open_bonuses(self) -> dict[Role, datetime]:
        return {role: bonus.expires_at for role, bonus in self._state.bonuses.items() if bonus.open}

    def _next_expiry(self) -> Any:
        return messages.BONUS_EXPIRES_AT.value_set(min(self._open_bonuses().values()))

    def _show(self, *changes: Any) -> None:
        """Let operators see where the referral stands: search attributes and current details."""
        if self._state.stage is not Stage.CLICKED:
            workflow.upsert_search_attributes([messages.REFERRAL_STAGE.value_set(self._state.stage), *changes])
        workflow.set_current_details(story.details(self._start, self._state, self._failing))

    async def _until(self, condition: Callable[[], bool], at: datetime | None, why: str) -> bool:
        """Wait for a condition, at most until a time; go on in a new run where the history has grown long.

        What is answered, whether the time has come, is known from a timer alone. The clock may say another time in a
        replay, after a local activity: it tells how long the timer lasts, never whether there is one.
        """
        if condition():
            return False
        timeout = None if at is None else max(at - workflow.now(), policies.SHORTEST_TIMER)
        try:
            await workflow.wait_condition(
                lambda: condition() or _history_is_long(), timeout=timeout, timeout_summary=why if timeout else None
            )
        except TimeoutError:
            return True
        if _history_is_long():
            workflow.continue_as_new(replace(self._start, state=self._state))
        return False

    async def _perform(
        self, step: Callable[[Any, Any], Coroutine[Any, Any, Answer]], summary: str, about: object = None
    ) -> Answer:
        """Take a step; one that keeps failing is shown until it succeeds."""
        return await steps.perform(step, about or self._start.referral_id, summary, self._show_failing)

    def _show_failing(self, words: str | None) -> None:
        self._failing = words
        workflow.upsert_search_attributes([messages.reasons_shown(self._shown_reasons())])
        workflow.set_current_details(story.details(self._start, self._state, self._failing))

    def _shown_reasons(self) -> list[str]:
        """Why to look at the referral, in single words, for filters."""
        return [*self._state.review_reasons, *([messages.STEP_FAILING] if self._failing else [])]


def _history_is_long() -> bool:
    """Whether the server suggests to go on in a new run, and every handler has recorded what it had to."""
    return workflow.info().is_continue_as_new_suggested() and workflow.all_handlers_finished()
