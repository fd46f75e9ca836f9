"""Signs that a referral may not be what it seems: what the operator wants to be done about each (rule 19)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from program.doubts import Doubt, Finding

DEVICES_KEPT = 20
"""Of how many networks and browsers, the ones seen last, something is kept of an account."""

SIGNUPS_A_DAY = 20
"""How many signups a day on one link are nothing special; a deployment may set another number."""

A_DAY = timedelta(hours=24)
"""The span before a signup, with it, in which the signups on its link are counted."""


class Handling(StrEnum):
    """What an optional signal does to the referral that shows it."""

    OFF = "off"
    MARK = "mark"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class SignalPolicy:
    """Which signs are looked at right before the credit, and what each does. As it stands, none is.

    Args:
        same_card: whether the card that paid is compared with the referrer's; the same one always holds the referral.
        same_device: the friend signed up from an address and with a browser that the referrer was seen with.
        disposable_email: the friend's e-mail address is at a provider of throw-away ones.
        many_signups: the referrer's link had more than `signups_a_day` signups within 24 hours.
        signups_a_day: how many are nothing special.
    """

    same_card: bool = False
    same_device: Handling = Handling.OFF
    disposable_email: Handling = Handling.OFF
    many_signups: Handling = Handling.OFF
    signups_a_day: int = SIGNUPS_A_DAY


@dataclass(frozen=True, slots=True)
class Signs:
    """What is known of a referral right before its credit.

    Args:
        same_card: the card that paid is one of the referrer's.
        same_device: the signup came from a network and with a browser that the referrer was seen with.
        disposable_email: the friend's e-mail address is at a provider of throw-away ones.
        signups_that_day: how many signups the link had in the 24 hours up to this one, which is counted.
    """

    same_card: bool
    same_device: bool
    disposable_email: bool
    signups_that_day: int


NO_SIGNS = Signs(same_card=False, same_device=False, disposable_email=False, signups_that_day=0)
"""Nothing is known, or nobody asks."""

Check = tuple[Doubt, Callable[[SignalPolicy], Handling], Callable[[Signs, SignalPolicy], bool]]

CHECKS: tuple[Check, ...] = (
    (
        Doubt.SAME_CARD,
        lambda policy: Handling.HOLD if policy.same_card else Handling.OFF,
        lambda signs, _: signs.same_card,
    ),
    (Doubt.SAME_DEVICE, lambda policy: policy.same_device, lambda signs, _: signs.same_device),
    (Doubt.DISPOSABLE_EMAIL, lambda policy: policy.disposable_email, lambda signs, _: signs.disposable_email),
    (
        Doubt.MANY_SIGNUPS,
        lambda policy: policy.many_signups,
        lambda signs, policy: signs.signups_that_day > policy.signups_a_day,
    ),
)
"""Rule 19: the doubt that a sign raises, what the operator wants done about it, and when it shows."""


def asks_for_signs(policy: SignalPolicy) -> bool:
    """Whether any sign is turned on; cards are aside, for they are about one payment."""
    return any(handling(replace(policy, same_card=False)) is not Handling.OFF for _, handling, _ in CHECKS)


def findings_of(signs: Signs, policy: SignalPolicy) -> tuple[Finding, ...]:
    """What the signs that are turned on found (rule 19)."""
    return tuple(
        Finding(doubt, hold=handling(policy) is Handling.HOLD)
        for doubt, handling, shows in CHECKS
        if handling(policy) is not Handling.OFF and shows(signs, policy)
    )
