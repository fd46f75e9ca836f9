"""The life of one referral: a click, the friend's signup, the first payment, both bonuses, their expiry."""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from program.eligibility import LAPSED_WORDS
    from program.payments import Attention
    from program.referral import Role, Stage
    from workflows import messages, policies, story
    from workflows.activities import ReferralActivities
    from workflows.messages import Bonus, CycleMoved, PaymentReported, ReferralStart, ReferralState, SignupReported

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

    @workflow.run
    async def run(self, _: ReferralStart) -> ReferralState:
        """Live the referral's life; the answer is how it ended."""
        self._show()
        if not await self._signup_comes():
            self._lapse()
        elif await self._signup_counts() and await self._first_payment_credits_both():
            await self._both_bonuses_expire()
        await workflow.wait_condition(workflow.all_handlers_finished)
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
        """Wait for the first real payment, and credit both sides for it (rules 3 to 8 and 14)."""
        while self._state.stage is Stage.SIGNED_UP:
            look_again = workflow.now() + policies.LOOK_AGAIN if self._state.needs_attention else None
            await self._until(self._payment_to_look_at, look_again, "look again whether the plan is known now")
            self._state.payments_looked_at = self._state.payments_reported
            self._take_credit(
                await self._perform(ReferralActivities.credit_both, "credit both sides, once and together (rules 3-8)")
            )
        return bool(self._state.bonuses)

    def _take_credit(self, credit: messages.Credit) -> None:
        state = self._state
        if (credit.stage, credit.needs_attention) == (state.stage, state.needs_attention):
            return
        changes: list[Any] = []
        if credit.needs_attention:
            changes.append(messages.REVIEW_REASONS.value_set([credit.review_reason or Attention.UNKNOWN_PRICE]))
        elif state.needs_attention:
            changes.append(messages.REVIEW_REASONS.value_unset())
        state.stage, state.reason, state.needs_attention = credit.stage, credit.reason, credit.needs_attention
        for role, expires_at in credit.expires_at.items():
            state.bonuses[role] = Bonus(credit.minutes, expires_at)
        if state.bonuses:
            state.plan, state.credited_at = credit.plan, credit.credited_at
            changes += [messages.PLAN.value_set(str(credit.plan)), self._next_expiry()]
        self._show(*changes)

    async def _both_bonuses_expire(self) -> None:
        """Sleep until the next bonus is due, expire it, and so on until both are over (rules 7 and 9)."""
        while self._open_bonuses():
            await self._sleep_until_due()
            self._take_expiry(await self._perform(ReferralActivities.expire_bonuses, "expire what is due (rule 7)"))

    async def _sleep_until_due(self) -> None:
        while (due := max(min(self._open_bonuses().values()), self._not_due_before)) > workflow.now():
            await self._sleep_until_moved(self._open_bonuses(), due)

    async def _sleep_until_moved(self, known: dict[Role, datetime], due: datetime) -> None:
        sides = " and ".join(role for role, expires_at in known.items() if expires_at <= due)
        await self._until(lambda: self._open_bonuses() != known, due, f"the bonus of the {sides} expires")
        if self._open_bonuses() != known:
            self._show(self._next_expiry())

    def _take_expiry(self, expiry: messages.Expiry) -> None:
        for role, minutes in expiry.expired_minutes.items():
            self._state.bonuses[role].expired_minutes = minutes
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

    def _payment_to_look_at(self) -> bool:
        return self._state.payments_reported > self._state.payments_looked_at

    def _open_bonuses(self) -> dict[Role, datetime]:
        return {role: bonus.expires_at for role, bonus in self._state.bonuses.items() if bonus.expired_minutes is None}

    def _next_expiry(self) -> Any:
        return messages.BONUS_EXPIRES_AT.value_set(min(self._open_bonuses().values()))

    def _show(self, *changes: Any) -> None:
        """Let operators see where the referral stands: search attributes and current details."""
        if self._state.stage is not Stage.CLICKED:
            workflow.upsert_search_attributes([messages.REFERRAL_STAGE.value_set(self._state.stage), *changes])
        workflow.set_current_details(story.details(self._start, self._state))

    async def _until(self, condition: Callable[[], bool], at: datetime | None, why: str) -> None:
        """Wait for a condition, at most until a time; go on in a new run where the history has grown long."""
        timeout = None if at is None else at - workflow.now()
        if condition() or (timeout is not None and timeout <= timedelta(0)):
            return
        try:
            await workflow.wait_condition(
                lambda: condition() or _history_is_long(), timeout=timeout, timeout_summary=why if timeout else None
            )
        except TimeoutError:
            return
        if _history_is_long():
            workflow.continue_as_new(replace(self._start, state=self._state))

    async def _perform(self, step: Callable[[Any, str], Coroutine[Any, Any, Answer]], summary: str) -> Answer:
        """Take a step: locally, which is quick; one that fails becomes a regular activity, which operators see."""
        referral_id = self._start.referral_id
        try:
            return await workflow.execute_local_activity_method(
                step, referral_id, summary=summary, **policies.LOCAL_STEP
            )
        except FailureError as error:  # what a local activity raised comes as it is, not wrapped in an ActivityError
            if is_cancelled_exception(error):
                raise
            return await workflow.execute_activity_method(step, referral_id, summary=summary, **policies.VISIBLE_STEP)


def _history_is_long() -> bool:
    """Whether the server suggests to go on in a new run, and every handler has recorded what it had to."""
    return workflow.info().is_continue_as_new_suggested() and workflow.all_handlers_finished()
