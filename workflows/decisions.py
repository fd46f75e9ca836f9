"""Operators' decisions within a run: updates leave them here, and the run's main course carries them out."""

from collections.abc import Iterable

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from program.doubts import Action, flaw_of
from program.referral import Stage
from workflows.messages import Decided, Decision, Outcome, Review, Void


class Decisions:
    """Decisions that wait to be carried out, and what became of them."""

    def __init__(self, referral_id: str) -> None:
        """About one referral."""
        self._referral_id = referral_id
        self._waiting: list[Decision] = []
        self._decided: dict[str, Decided] = {}

    @property
    def waiting(self) -> bool:
        """Whether there is one to carry out."""
        return bool(self._waiting)

    @property
    def next(self) -> Decision:
        """The one that was made first."""
        return self._waiting[0]

    def carried_out(self, decided: Decided) -> None:
        """Say what became of the next one."""
        self._decided[self._waiting.pop(0).decision_id] = decided

    async def carry_out(self, asked: Review | Void) -> Outcome:
        """Leave a decision to the main course, and wait for what becomes of it.

        Raises:
            ApplicationError: it was impossible; the message says why.
        """
        update = workflow.current_update_info()
        decision_id = f"{workflow.info().first_execution_run_id}/{update.id if update else ''}"
        action = Action(asked.decision) if isinstance(asked, Review) else Action.VOID
        self._waiting.append(Decision(self._referral_id, decision_id, action, asked.by.strip(), asked.note.strip()))
        await workflow.wait_condition(lambda: decision_id in self._decided)
        decided = self._decided.pop(decision_id)
        if decided.credit is None:
            raise ApplicationError(decided.impossible or "impossible", type="Impossible", non_retryable=True)
        return Outcome(decided.credit.stage, decided.credit.reason, decided.voided_minutes)


def check_texts(asked: Review | Void) -> None:
    """Refuse a decision that does not say who made it, and why.

    Raises:
        ApplicationError: the message says what is wrong.
    """
    if flaw := flaw_of(asked.by, asked.note):
        raise ApplicationError(flaw, type="Malformed", non_retryable=True)


def check_review(asked: Review, stage: Stage, reasons: Iterable[str]) -> None:
    """Refuse a review of what is not in doubt; the ledger has the last word.

    Raises:
        ApplicationError: the message says what can be done instead.
    """
    check_texts(asked)
    if stage is Stage.IN_REVIEW:
        return
    if stage not in (Stage.CREDITED, Stage.SETTLED) or not list(reasons):
        raise ApplicationError(f"nothing is in doubt: the referral is {stage}", type="Impossible", non_retryable=True)
    if asked.decision == "reject":
        raise ApplicationError(
            "the bonus was credited already: void it, or approve it", type="Impossible", non_retryable=True
        )


def check_void(asked: Void, stage: Stage) -> None:
    """Refuse to void what has brought nothing and waits for nothing; the ledger has the last word.

    Raises:
        ApplicationError: the message says how the referral stands.
    """
    check_texts(asked)
    if stage not in (Stage.SIGNED_UP, Stage.IN_REVIEW, Stage.CREDITED, Stage.SETTLED):
        raise ApplicationError(
            f"there is nothing to void: the referral is {stage}", type="Impossible", non_retryable=True
        )
