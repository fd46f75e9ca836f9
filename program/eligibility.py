"""Whose signup counts (rules 10 and 18): small named checks, each with words for a support agent (rule 22)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from program.referral import AttributionWindow, Stage, is_new_account


class Refusal(StrEnum):
    """Why a referral ends without a bonus although somebody signed up."""

    SAME_ACCOUNT = "same-account"
    SAME_EMAIL = "same-email"
    SAME_CUSTOMER = "same-customer"
    ACCOUNT_ERASED = "account-erased"
    EXISTING_ACCOUNT = "existing-account"
    ALREADY_REFERRED = "already-referred"
    KNOWN_EMAIL = "known-email"
    KNOWN_CUSTOMER = "known-customer"
    PAID_BEFORE = "paid-before"
    DECLINED = "declined"

    @property
    def words(self) -> str:
        """The reason, as a support agent can read it out (rule 22)."""
        return _WORDS[self]


_WORDS = {
    Refusal.SAME_ACCOUNT: "The link belongs to the very account that followed it; nobody can refer themselves.",
    Refusal.SAME_EMAIL: "The new account has the same e-mail address as the referrer's; nobody can refer themselves.",
    Refusal.SAME_CUSTOMER: "The new account pays as the same customer as the referrer; nobody can refer themselves.",
    Refusal.ACCOUNT_ERASED: "Account erased: the friend's account was deleted before a bonus was due.",
    Refusal.EXISTING_ACCOUNT: "The account existed before the link was followed; referrals are for new signups only.",
    Refusal.ALREADY_REFERRED: "The account already belongs to another referral; the first one counts.",
    Refusal.KNOWN_EMAIL: "The e-mail address was another account's before; referrals are for new signups only.",
    Refusal.KNOWN_CUSTOMER: "The paying customer was another account's before; referrals are for new signups only.",
    Refusal.DECLINED: "Declined: an operator looked at the referral and decided against a bonus.",
    Refusal.PAID_BEFORE: "The customer had paid before the link was followed; referrals are for new signups only.",
}

LAPSED_WORDS = "Nobody signed up with this link in time."
"""Why a referral lapsed, as a support agent can read it out (rules 15 and 22)."""

VOIDED_WORDS = "Voided: an operator ended the referral before a bonus was due."
"""Why a referral is voided, as a support agent can read it out (rules 20 and 22)."""

TAKEN_BACK_WORDS = "Voided: an operator took back what was unused of both bonuses."
"""What became of a credited referral that was voided (rules 20 and 22)."""


@dataclass(frozen=True, slots=True)
class Signup:
    """What is known about a signup when it is looked at.

    Args:
        created_at: when the account was made, UTC.
        clicked_at: when the link was followed, UTC.
        same_account: it is the referrer's own account.
        same_email: its normalised e-mail is the referrer's.
        same_customer: one of its Stripe customers is the referrer's.
        erased: the account has been erased.
        already_referred: another referral of it stands (refused ones do not count).
        known_email: its e-mail belonged to another account before, an erased one included.
        known_customer: one of its Stripe customers did.
        first_paid_at: when one of its Stripe customers first really paid, if any did, UTC.
    """

    created_at: datetime
    clicked_at: datetime
    same_account: bool
    same_email: bool
    same_customer: bool
    erased: bool
    already_referred: bool
    known_email: bool
    known_customer: bool
    first_paid_at: datetime | None


Check = tuple[Refusal, Callable[[Signup], bool]]

SELF_REFERRAL: tuple[Check, ...] = (
    (Refusal.SAME_ACCOUNT, lambda signup: signup.same_account),
    (Refusal.SAME_EMAIL, lambda signup: signup.same_email),
    (Refusal.SAME_CUSTOMER, lambda signup: signup.same_customer),
)
"""Rule 18: looked at when attributed, and again before the credit."""

ERASED: tuple[Check, ...] = ((Refusal.ACCOUNT_ERASED, lambda signup: signup.erased),)
"""Rule 23: looked at when attributed, and again before the credit."""

NEW_CUSTOMER: tuple[Check, ...] = (
    (Refusal.KNOWN_CUSTOMER, lambda signup: signup.known_customer),
    (Refusal.PAID_BEFORE, lambda signup: signup.first_paid_at is not None and signup.first_paid_at < signup.clicked_at),
)
"""Rule 10, as far as the Stripe customer tells: who that is may be known only after the signup was attributed."""

NEW_SIGNUP: tuple[Check, ...] = (
    (Refusal.EXISTING_ACCOUNT, lambda signup: not is_new_account(signup.created_at, signup.clicked_at)),
    (Refusal.ALREADY_REFERRED, lambda signup: signup.already_referred),
    (Refusal.KNOWN_EMAIL, lambda signup: signup.known_email),
    *NEW_CUSTOMER,
)
"""Rule 10: looked at when the signup is attributed."""


def _first(checks: tuple[Check, ...], signup: Signup) -> Refusal | None:
    return next((refusal for refusal, applies in checks if applies(signup)), None)


def refusal_of_signup(signup: Signup) -> Refusal | None:
    """Why a signup cannot be attributed; none if it can (rules 10 and 18)."""
    return _first(SELF_REFERRAL + ERASED + NEW_SIGNUP, signup)


def becomes_of_signup(signup: Signup, window: AttributionWindow) -> tuple[Stage, Refusal | None]:
    """What becomes of a signup: attributed, refused and why, or too late for its click (rules 10, 15 and 18)."""
    refusal = refusal_of_signup(signup)
    if refusal is not None:
        return Stage.REFUSED, refusal
    return (Stage.SIGNED_UP if window.admits(signup.created_at) else Stage.LAPSED), None


def refusal_before_credit(signup: Signup) -> Refusal | None:
    """Why an attributed referral cannot be credited after all; none if it can (rules 10, 18 and 23)."""
    return _first(SELF_REFERRAL + ERASED + NEW_CUSTOMER, signup)
