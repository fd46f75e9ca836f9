"""What is said to a referral's run and what it answers: names, payloads, search attributes. Nothing personal."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import AwareDatetime
from temporalio.common import SearchAttributeKey

from program.payments import Attention
from program.referral import Role, Stage

WORKFLOW = "ReferralWorkflow"
SIGNUP = "signup"
PAYMENT = "payment"
CYCLE_MOVED = "cycle_moved"
STATE = "state"

REFERRAL_STAGE = SearchAttributeKey.for_keyword("ReferralStage")
REFERRER_ACCOUNT = SearchAttributeKey.for_keyword("ReferrerAccount")
REFEREE_ACCOUNT = SearchAttributeKey.for_keyword("RefereeAccount")
PLAN = SearchAttributeKey.for_keyword("Plan")
BONUS_EXPIRES_AT = SearchAttributeKey.for_datetime("BonusExpiresAt")
REVIEW_REASONS = SearchAttributeKey.for_keyword_list("ReviewReasons")

SEARCH_ATTRIBUTES: tuple[SearchAttributeKey[Any], ...] = (
    REFERRAL_STAGE,
    REFERRER_ACCOUNT,
    REFEREE_ACCOUNT,
    PLAN,
    BONUS_EXPIRES_AT,
    REVIEW_REASONS,
)
"""All search attributes that a namespace needs before the first referral."""


def workflow_id(referral_id: str) -> str:
    """The id of the run that is a referral's life."""
    return f"referral-{referral_id}"


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


@dataclass
class Bonus:
    """One side's bonus, as the run knows it.

    Args:
        minutes: what was credited.
        expires_at: until when it can be used, UTC.
        expired_minutes: how many of them expired unused; none while it can still be used.
    """

    minutes: int
    expires_at: datetime
    expired_minutes: int | None = None


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
        signed_up_at: when it was attributed, UTC.
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
        review_reason: the same in one word, for filters.
        plan: the plan that was paid for.
        minutes: the bonus of each side.
        credited_at: when both got it, UTC.
        expires_at: until when each side can use it, UTC.
    """

    stage: Stage
    reason: str | None = None
    needs_attention: str | None = None
    review_reason: Attention | None = None
    plan: str | None = None
    minutes: int = 0
    credited_at: datetime | None = None
    expires_at: dict[Role, datetime] = field(default_factory=dict)


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
        open: for each side that is not.
    """

    stage: Stage
    expired_minutes: dict[Role, int] = field(default_factory=dict)
    open: dict[Role, OpenBonus] = field(default_factory=dict)
