"""What the backend is told of referrals and bonuses, and when (rules 6, 7, 9, 19, 20 and 22)."""

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum

from program.referral import Stage

REMINDER = timedelta(days=3)
"""How long before a bonus ends its owner is reminded."""

STARTED_BY_THEN = timedelta(seconds=30)
"""A message that no delivery has begun for by then was left by a crash."""

STARTED_AGAIN_AFTER = timedelta(minutes=10)
"""How long a message is left alone after its delivery was asked for once more."""

LOOKED_FOR_AFTER = timedelta(days=1)
"""How long a delivery that has begun is trusted to be under way."""

TOO_OLD = timedelta(days=3)
"""A message that nobody began to deliver by then is not delivered any more: it would be no news."""

KEPT = timedelta(days=30)
"""How long a message can be delivered again by hand. Afterwards it is thrown away."""


class Kind(StrEnum):
    """What has happened, by the names of the Standard Webhooks specification's `type`."""

    REFERRAL_SIGNED_UP = "referral.signed_up"
    REFERRAL_REFUSED = "referral.refused"
    REFERRAL_IN_REVIEW = "referral.in_review"
    BONUS_CREDITED = "bonus.credited"
    BONUS_EXPIRING = "bonus.expiring"
    BONUS_EXPIRED = "bonus.expired"
    BONUS_VOIDED = "bonus.voided"


_OF_STAGE: Mapping[Stage, Kind] = {
    Stage.SIGNED_UP: Kind.REFERRAL_SIGNED_UP,
    Stage.IN_REVIEW: Kind.REFERRAL_IN_REVIEW,
    Stage.REFUSED: Kind.REFERRAL_REFUSED,
    Stage.VOIDED: Kind.REFERRAL_REFUSED,
}


def kind_of_stage(stage: Stage) -> Kind | None:
    """What the backend is told when a referral comes to a stage, if it is told anything.

    One that an operator voids before the credit is told as refused: it was told as signed up, and ends without a bonus
    (rule 22). Of the credit and of the end each side's bonus tells; one that lapses was never told of.
    """
    return _OF_STAGE.get(stage)


def happens_again(kind: Kind) -> bool:
    """Whether a referral can come to the same stage more than once, and each time is told.

    A review can end in waiting for another payment, which can be doubtful again; the signup is told once.
    """
    return kind is Kind.REFERRAL_IN_REVIEW


def reminder_due(expires_at: datetime, now: datetime) -> bool:
    """Whether the owner of a bonus is to be reminded of its end: three days ahead, or from the credit on."""
    return now < expires_at <= now + REMINDER


def message_id(kind: Kind, referral_id: str, account_id: str | None, occasion: str) -> str:
    """The id of a message: it follows from what happened, so that the same thing is told under one id.

    Args:
        kind: what happened.
        referral_id: to which referral.
        account_id: to whose bonus; none where it concerns the referral itself.
        occasion: which time, of what can happen more than once.
    """
    parts = "\0".join((kind, referral_id, account_id or "", occasion))
    return f"msg_{hashlib.sha256(parts.encode()).hexdigest()[:32]}"
