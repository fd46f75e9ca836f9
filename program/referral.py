"""A referral's stages, and the times that decide about it (rules 10, 15 and 16)."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

ATTRIBUTION_WINDOW = timedelta(days=90)
"""How long a click counts (rule 15); a deployment may set another."""

REPORTING_GRACE = timedelta(days=7)
"""How much later the call that reports a signup may come (rule 15)."""

CLICK_TOLERANCE = timedelta(minutes=2)
"""How much older than the click a new account may be, for clocks that differ (rule 10)."""

REPEATED_CLICK = timedelta(hours=24)
"""A second click of one visitor on one link within this time is the same referral (rule 16)."""


class Stage(StrEnum):
    """How far a referral has come. The last four are final; `CREDITED` and `SETTLED` had a bonus."""

    CLICKED = "clicked"
    SIGNED_UP = "signed_up"
    IN_REVIEW = "in_review"
    CREDITED = "credited"
    SETTLED = "settled"
    LAPSED = "lapsed"
    REFUSED = "refused"
    VOIDED = "voided"

    @property
    def open(self) -> bool:
        """Whether something can still become of the referral."""
        return self in (Stage.CLICKED, Stage.SIGNED_UP, Stage.IN_REVIEW, Stage.CREDITED)

    @property
    def awaits_payment(self) -> bool:
        """Whether a payment of the referee could still bring the bonus."""
        return self in (Stage.CLICKED, Stage.SIGNED_UP, Stage.IN_REVIEW)

    @property
    def attributed(self) -> bool:
        """Whether the referee's signup belongs to this referral; refused ones do not count (rule 10)."""
        return self in (Stage.SIGNED_UP, Stage.IN_REVIEW, Stage.CREDITED, Stage.SETTLED, Stage.VOIDED)


class Role(StrEnum):
    """Which side of a referral an account is on."""

    REFERRER = "referrer"
    REFEREE = "referee"


@dataclass(frozen=True, slots=True)
class AttributionWindow:
    """The time in which one click counts.

    Args:
        clicked_at: when the link was followed, UTC.
        length: how long the click counts (rule 15).
    """

    clicked_at: datetime
    length: timedelta = ATTRIBUTION_WINDOW

    @property
    def closes_at(self) -> datetime:
        """An account created at this instant or later is too late (rule 15)."""
        return self.clicked_at + self.length

    @property
    def lapses_at(self) -> datetime:
        """With no signup reported by this instant, the referral lapses (rule 15)."""
        return self.closes_at + REPORTING_GRACE

    def admits(self, created_at: datetime) -> bool:
        """Whether an account created at this time is soon enough after the click (rule 15)."""
        return created_at < self.closes_at

    def lapsed(self, now: datetime) -> bool:
        """Whether it is too late for the call that reports the signup (rule 15)."""
        return now >= self.lapses_at

    def same_visit(self, now: datetime) -> bool:
        """Whether one more click of the visitor on the link is this same referral (rule 16)."""
        return now < self.clicked_at + REPEATED_CLICK


def code_given_at(created_at: datetime, now: datetime) -> datetime:
    """When a code given at a signup counts as a click: right before the account was made (rules 2 and 15).

    The call may report that late. A code for an account that is older than that is looked at as given now, and is
    refused for it (rule 10).
    """
    if now >= created_at + REPORTING_GRACE:
        return now
    return click_vouched_for(created_at, now)


def click_vouched_for(created_at: datetime, now: datetime) -> datetime:
    """When a link that an operator vouches for counts as followed: right before the account was made (rules 2 and 15).

    It counts for as long as any click, so that what lapsed for everybody else has lapsed for an operator too.
    """
    return min(created_at, now) - CLICK_TOLERANCE


def is_new_account(created_at: datetime, clicked_at: datetime) -> bool:
    """Whether an account is new with respect to a click: not older by more than two minutes (rule 10)."""
    return created_at >= clicked_at - CLICK_TOLERANCE
