"""What is said to a referral's run and what it answers: names, payloads, search attributes. Nothing personal."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import AwareDatetime
from temporalio.common import SearchAttributeKey, SearchAttributeUpdate

from program.doubts import Action, Doubt
from program.payments import Attention
from program.referral import Role, Stage

WORKFLOW = "ReferralWorkflow"
SIGNUP = "signup"
PAYMENT = "payment"
CYCLE_MOVED = "cycle_moved"
REVERSED = "reversed"
ACCOUNT_ERASED = "account_erased"
LOOK_AGAIN = "look_again"
REVIEW = "review"
VOID = "void"
STATE = "state"

REVIEW_WORKFLOW = "ReviewWorkflow"

REFERRAL_STAGE = SearchAttributeKey.for_keyword("ReferralStage")
REFERRER_ACCOUNT = SearchAttributeKey.for_keyword("ReferrerAccount")
REFEREE_ACCOUNT = SearchAttributeKey.for_keyword("RefereeAccount")
PLAN = SearchAttributeKey.for_keyword("Plan")
BONUS_EXPIRES_AT = SearchAttributeKey.for_datetime("BonusExpiresAt")
REVIEW_REASONS = SearchAttributeKey.for_keyword_list("ReviewReasons")

STEP_FAILING = "step-failing"
"""Among the review reasons of a run whose step keeps failing; the ledger does not know, it may be what is away."""

SEARCH_ATTRIBUTES: tuple[SearchAttributeKey[Any], ...] = (
    REFERRAL_STAGE,
    REFERRER_ACCOUNT,
    REFEREE_ACCOUNT,
    PLAN,
    BONUS_EXPIRES_AT,
    REVIEW_REASONS,
)
"""All search attributes that a namespace needs before the first referral."""


def reasons_shown(reasons: Sequence[str]) -> SearchAttributeUpdate[Any]:
    """The change that shows these reasons to look at a referral, and no others."""
    return REVIEW_REASONS.value_set(reasons) if reasons else REVIEW_REASONS.value_unset()


def workflow_id(referral_id: str) -> str:
    """The id of the run that is a referral's life."""
    return f"referral-{referral_id}"


def review_id(referral_id: str) -> str:
    """The id of the run in which an operator decides about a referral whose own run is closed."""
    return f"referral-{referral_id}-review"


def referral_of(run: str) -> str:
    """The referral whose life, or review, a run is; anything else comes back as it is."""
    return run.removeprefix("referral-").removesuffix("-review")


@dataclass(frozen=True)
class SignupReported:
    """The friend has signed up; who it is was reserved for this referral before."""

    account_id: str


@dataclass(frozen=True)
class PaymentReported:
    """A payment of the friend is on record; the ledger knows which, and whether it counts.

    Args:
        event_id: what brought the news, for the reader of the history.
    """

    event_id: str


@dataclass(frozen=True)
class CycleMoved:
    """A billing cycle moved, and a bonus with it (rule 9).

    Args:
        role: whose bonus.
        expires_at: until when it can be used now, UTC.
    """

    role: Role
    expires_at: AwareDatetime  # without a time zone it cannot be compared, and would fail the run's task for ever


@dataclass(frozen=True)
class PaymentReversed:
    """The payment that qualified was given back, or is disputed (rule 20).

    Args:
        reason: which of these.
    """

    reason: Doubt


@dataclass(frozen=True)
class AccountErased:
    """The account of one side was erased (rule 23).

    Args:
        role: which side.
    """

    role: Role


@dataclass(frozen=True)
class LookAgain:
    """An operator asks to look again, at once.

    Args:
        asked_id: of the asking, for the reader of the history.
    """

    asked_id: str


@dataclass(frozen=True)
class Review:
    """What an operator says of a referral that is held or marked for review (rules 19 and 20).

    Args:
        decision: `approve` or `reject`.
        by: who decides: an id of the operator's, for it is kept and shown.
        note: why; it is kept and shown as well, so it names accounts by their ids and nobody by name (rule 24).
    """

    decision: Literal["approve", "reject"]
    by: str
    note: str


@dataclass(frozen=True)
class Void:
    """An operator takes back what is unused, or ends a referral before its credit (rule 20).

    Args:
        by: who decides: an id of the operator's, for it is kept and shown.
        note: why; it is kept and shown as well, so it names accounts by their ids and nobody by name (rule 24).
    """

    by: str
    note: str


@dataclass(frozen=True)
class Decision:
    """What an operator decided, as it is carried out.

    Args:
        referral_id: about which referral.
        decision_id: the id of the update that brought it; the same one again changes nothing.
        action: what.
        by: who.
        note: why.
    """

    referral_id: str
    decision_id: str
    action: Action
    by: str
    note: str


@dataclass(frozen=True)
class Outcome:
    """What an operator's decision led to: the answer to the update.

    Args:
        stage: the referral's stage now.
        reason: why, where there is something to say.
        minutes_voided: what was taken back of each side.
    """

    stage: Stage
    reason: str | None = None
    minutes_voided: dict[Role, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reviewed:
    """A decision that was carried out: what, by whom, why, and when (UTC)."""

    action: Action
    by: str
    note: str
    at: datetime


@dataclass
class Bonus:
    """One side's bonus, as the run knows it.

    Args:
        minutes: what was credited.
        expires_at: until when it can be used, UTC.
        expired_minutes: how many of them expired unused; none while it can still be used.
        voided_minutes: how many of them were voided; none where it was not.
    """

    minutes: int
    expires_at: datetime
    expired_minutes: int | None = None
    voided_minutes: int | None = None

    @property
    def open(self) -> bool:
        """Whether it can still be used, as far as the run knows."""
        return self.expired_minutes is None and self.voided_minutes is None


@dataclass
class ReferralState:
    """Everything that a run knows: what the `state` query answers, and what a continued run begins with."""

    stage: Stage = Stage.CLICKED
    reason: str | None = None
    referee: str | None = None
    signed_up_at: datetime | None = None
    plan: str | None = None
    credited_at: datetime | None = None
    needs_attention: str | None = None
    bonuses: dict[Role, Bonus] = field(default_factory=dict)
    payments_reported: int = 0
    payments_looked_at: int = 0
    review_reasons: list[str] = field(default_factory=list)
    reviews: list[Reviewed] = field(default_factory=list)
    bonuses_to_look_at: bool = False


@dataclass(frozen=True)
class ReferralStart:
    """What a run needs to know from the first moment on. A signed link token holds all of it.

    Args:
        referral_id: the referral.
        referrer: the account whose link was followed.
        clicked_at: when, UTC.
        lapses_at: with no signup reported by then, the referral lapses (rule 15), UTC.
        state: where a run that goes on for another one begins.
    """

    referral_id: str
    referrer: str
    clicked_at: datetime
    lapses_at: datetime
    state: ReferralState | None = None


@dataclass(frozen=True)
class Attribution:
    """What became of a signup: `signed_up`, `refused` or `lapsed`.

    Args:
        stage: the referral's stage now.
        reason: why, where it ended (rule 22).
        signed_up_at: when the signup was decided about, UTC; none where the referral had lapsed.
        payment_known: a payment of the friend is already on record.
    """

    stage: Stage
    reason: str | None = None
    signed_up_at: datetime | None = None
    payment_known: bool = False


@dataclass(frozen=True)
class Credit:
    """What became of the credit: `credited`, `refused`, or still `signed_up` where nothing that counts was paid yet.

    Args:
        stage: the referral's stage now.
        reason: why, where it ended without a bonus (rule 22).
        needs_attention: what an operator has to mend before it can go on.
        review_reasons: the same in single words, for filters.
        plan: the plan that was paid for.
        minutes: the bonus of each side.
        credited_at: when both got it, UTC.
        expires_at: until when each side can use it, UTC.
    """

    stage: Stage
    reason: str | None = None
    needs_attention: str | None = None
    review_reasons: list[Doubt | Attention] = field(default_factory=list)
    plan: str | None = None
    minutes: int = 0
    credited_at: datetime | None = None
    expires_at: dict[Role, datetime] = field(default_factory=dict)


@dataclass(frozen=True)
class Decided:
    """What became of an operator's decision.

    Args:
        credit: how the referral stands now; none where the decision was impossible.
        at: when it was made, UTC.
        voided_minutes: what was taken back of each side.
        impossible: why it could not be carried out.
    """

    credit: Credit | None = None
    at: datetime | None = None
    voided_minutes: dict[Role, int] = field(default_factory=dict)
    impossible: str | None = None


@dataclass(frozen=True)
class ReviewStart:
    """What the review of a referral begins with whose own run is closed. An operator may give the id alone.

    Args:
        referral_id: the referral.
        referrer: whose link it was.
        referee: who followed it.
        stage: the referral's stage.
        reasons: why it is in doubt.
    """

    referral_id: str
    referrer: str | None = None
    referee: str | None = None
    stage: Stage = Stage.SETTLED
    reasons: list[Doubt] = field(default_factory=list)


@dataclass(frozen=True)
class OpenBonus:
    """A bonus that can still be used.

    Args:
        expires_at: until when, UTC.
        due_in: how long that is by the database's clock.
    """

    expires_at: datetime
    due_in: timedelta


@dataclass(frozen=True)
class Expiry:
    """How the bonuses of a referral stand after those that were due have expired.

    Args:
        stage: `settled` once both are over, else `credited`.
        expired_minutes: for each side that is over, how many minutes expired unused.
        voided_minutes: for each side that was voided, how many minutes went.
        open: for each side that is not.
    """

    stage: Stage
    expired_minutes: dict[Role, int] = field(default_factory=dict)
    voided_minutes: dict[Role, int] = field(default_factory=dict)
    open: dict[Role, OpenBonus] = field(default_factory=dict)
