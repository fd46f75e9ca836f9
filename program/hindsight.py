"""What would have become of a past referral by other rules: the rules asked again, over what is on record of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from fractions import Fraction

from program.doubts import Approved, holds, undecided
from program.eligibility import Signup, becomes_of_signup
from program.payments import Attention, Payment, UnknownPriceError, first_qualifying_payment
from program.plans import BONUS_SHARE, Plans, bonus_minutes
from program.referral import AttributionWindow, Stage
from program.signals import SignalPolicy, Signs, findings_of


class Ending(StrEnum):
    """What becomes of a referral, as far as the rules decide it; what happens to a bonus afterwards is left out."""

    CREDITED = "credited"
    HELD = "held"
    WAITS = "waits"
    LAPSED = "lapsed"
    REFUSED = "refused"
    VOIDED = "voided"


@dataclass(frozen=True, slots=True)
class Rules:
    """What can be changed of the rules, to try it.

    Args:
        plans: the plans on sale.
        policy: which signs are looked at, and what each does.
        share: what each side gets of the plan's minutes.
        window: how long every click counts; none where each counts for as long as it did.
    """

    plans: Plans
    policy: SignalPolicy
    share: Fraction = BONUS_SHARE
    window: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Past:
    """A past referral with a signup, and what is on record of it.

    Args:
        referral_id: which.
        verdict: what became of it.
        final: it stays so by whatever rules: it was refused, or an operator ended it.
        signup: what is known of the signup.
        window: when the link was followed, and for how long that counted.
        reported_at: when the signup was reported, UTC; none where that is not on record.
        payments: of the friend; of the one that brought a bonus without what was given back or disputed after it.
        signs: what is known of signs that it may not be what it seems.
        cards_compared: the invoices whose card was compared with the referrer's, and whether it was the same.
        approved: what operators approved of.
    """

    referral_id: str
    verdict: "Verdict"
    final: bool
    signup: Signup
    window: AttributionWindow
    reported_at: datetime | None
    payments: Sequence[Payment]
    signs: Signs
    cards_compared: dict[str, bool]
    approved: Sequence[Approved]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a referral.

    Args:
        ending: how it ends, or waits.
        why: in single words, where there is something to say.
        plan: that was paid for, where it is credited.
        minutes: the bonus of each side.
    """

    ending: Ending
    why: tuple[str, ...] = ()
    plan: str | None = None
    minutes: int = 0

    @property
    def words(self) -> str:
        """The verdict, for people."""
        if self.ending is Ending.CREDITED:
            return f"credited for {self.plan}, {self.minutes} minutes each"
        return f"{self.ending}: {', '.join(self.why)}" if self.why else str(self.ending)

    def same_as(self, other: "Verdict") -> bool:
        """Whether the same becomes of it; why it ended without a bonus makes no difference."""
        if (self.ending, self.plan, self.minutes) != (other.ending, other.plan, other.minutes):
            return False
        return self.why == other.why or self.ending not in (Ending.HELD, Ending.WAITS)


class UndecidableError(Exception):
    """What the rules ask for is not on record: the message says what."""


REPORTED_LATE = "reported-late"
"""Why a referral lapses whose signup was reported when the window and its grace were over (rule 15)."""

CREATED_LATE = "created-late"
"""Why a referral lapses whose account was made when the window was over (rule 15)."""


def verdict_by(rules: Rules, past: Past) -> Verdict:
    """What becomes of a past referral by these rules.

    Raises:
        UndecidableError: what they ask for is not on record.
    """
    if past.final:
        return past.verdict
    window = AttributionWindow(past.window.clicked_at, rules.window or past.window.length)
    if past.reported_at is not None and window.lapsed(past.reported_at):
        return Verdict(Ending.LAPSED, (REPORTED_LATE,))
    if past.verdict.ending is Ending.LAPSED and not window.admits(past.signup.created_at):
        # Too late it was, whatever became known of the signup since.
        return past.verdict
    stage, refusal = becomes_of_signup(past.signup, window)
    if refusal is not None:
        return Verdict(Ending.REFUSED, (refusal.value,))
    if stage is Stage.LAPSED:
        return Verdict(Ending.LAPSED, (CREATED_LATE,))
    try:
        qualifying = first_qualifying_payment(past.payments, rules.plans)
    except UnknownPriceError:
        return Verdict(Ending.WAITS, (Attention.UNKNOWN_PRICE.value,))
    if qualifying is None:
        return Verdict(Ending.WAITS)
    invoice, plan = qualifying.payment.invoice, qualifying.plan
    of_payment = undecided(qualifying.payment.findings, past.approved, invoice)
    signs = _signs(rules.policy, past, invoice, whatever=holds(of_payment))
    left = (*of_payment, *undecided(findings_of(signs, rules.policy), past.approved, invoice))
    if holds(left):
        return Verdict(Ending.HELD, tuple(sorted({finding.doubt.value for finding in left})))
    return Verdict(Ending.CREDITED, plan=plan.id, minutes=bonus_minutes(plan.minutes, rules.share))


def _signs(policy: SignalPolicy, past: Past, invoice: str, *, whatever: bool) -> Signs:
    """What is known of signs; `whatever` the card was, where the referral is held in any case."""
    same_card = past.cards_compared.get(invoice)
    if policy.same_card and same_card is None and not whatever:
        raise UndecidableError("the card that paid was never compared with the referrer's")
    signs = past.signs
    return Signs(bool(same_card), signs.same_device, signs.disposable_email, signs.signups_that_day)
