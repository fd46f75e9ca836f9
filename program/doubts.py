"""Doubts: why an operator has to look at a referral (rules 14, 19 and 20)."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address

LONGEST_NAME = 100
LONGEST_NOTE = 1000
"""How much an operator may say of a decision, in characters."""


class Action(StrEnum):
    """What an operator can decide about a doubtful referral (rules 19 and 20)."""

    APPROVE = "approve"
    REJECT = "reject"
    VOID = "void"


def flaw_of(by: str, note: str) -> str | None:
    """What is wrong with what an operator said of who decided and why; none if nothing is.

    Both are kept and shown, also after an account is erased, so people are named by ids (rule 24). An e-mail or IP
    address is refused; no name can be told from other words.
    """
    for name, text, longest in (("by", by, LONGEST_NAME), ("note", note, LONGEST_NOTE)):
        if not text.strip():
            return f"say {'who decides' if name == 'by' else 'why'}: {name} is empty"
        if len(text) > longest:
            return f"{name} has more than {longest} characters"
        if "@" in text:
            return f"{name} must hold no e-mail address, for it is kept and shown: give an id"
        if _holds_ip_address(text):
            return f"{name} must hold no IP address, for it is kept and shown"
        if not all(letter.isprintable() or letter == "\n" for letter in text):
            return f"{name} has control characters"
    return None


_BETWEEN_WORDS = str.maketrans(dict.fromkeys("()[]{}<>,;\"'!?/=", " "))


def _holds_ip_address(text: str) -> bool:
    """Whether a word of a text is one: with the mark that ends a sentence, a port after it, or what it is before it."""
    words = text.translate(_BETWEEN_WORDS).split()
    return any(
        _is_ip_address(part.rstrip("."))
        for word in words
        for part in (word, word.rstrip(".:"), word.partition(":")[0], word.rpartition(":")[2])
    )


def _is_ip_address(word: str) -> bool:
    try:
        ip_address(word)
    except ValueError:
        return False
    return True


class Doubt(StrEnum):
    """Why a referral is held or marked for an operator; a value of `review_reasons`."""

    REFUNDED_IN_PART = "refunded-in-part"
    REFUNDED = "refunded"
    DISPUTED = "disputed"
    SAME_CARD = "same-card"
    SAME_DEVICE = "same-device"
    DISPOSABLE_EMAIL = "disposable-email"
    MANY_SIGNUPS = "many-signups"

    @property
    def words(self) -> str:
        """The doubt, as a support agent can read it out (rule 22)."""
        return _WORDS[self]

    @property
    def about_payment(self) -> bool:
        """Whether it is about one invoice: of another one it is a new doubt."""
        return self in _ABOUT_PAYMENT


_ABOUT_PAYMENT = frozenset({Doubt.REFUNDED_IN_PART, Doubt.REFUNDED, Doubt.DISPUTED, Doubt.SAME_CARD})

_WORDS = {
    Doubt.REFUNDED_IN_PART: "A part of the friend's payment was refunded.",
    Doubt.REFUNDED: "The friend's payment was refunded.",
    Doubt.DISPUTED: "The friend's payment is disputed with the bank.",
    Doubt.SAME_CARD: "The friend paid with the card that the referrer pays with.",
    Doubt.SAME_DEVICE: "The friend signed up from the same address and browser as the referrer.",
    Doubt.DISPOSABLE_EMAIL: "The friend's e-mail address is a throw-away one.",
    Doubt.MANY_SIGNUPS: "Unusually many accounts signed up with this link within a day.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A doubt that was found right before the credit.

    Args:
        doubt: what it is.
        hold: nobody is credited until an operator decides; else the referral is credited, and only marked.
    """

    doubt: Doubt
    hold: bool


@dataclass(frozen=True, slots=True)
class Approved:
    """A doubt that an operator approved of, and the invoice that the referral was held or marked for then."""

    doubt: Doubt
    invoice: str | None


def undecided(found: Iterable[Finding], approved: Iterable[Approved], invoice: str) -> tuple[Finding, ...]:
    """What of that was found is not approved of: a doubt about a payment is one about that invoice alone (rule 19)."""
    settled = approved_of(approved, invoice)
    return tuple(finding for finding in found if finding.doubt not in settled)


def approved_of(approved: Iterable[Approved], invoice: str) -> frozenset[Doubt]:
    """The doubts that are approved of where this invoice would bring, or brought, the bonus."""
    return frozenset(each.doubt for each in approved if not each.doubt.about_payment or each.invoice == invoice)


def holds(found: Iterable[Finding]) -> bool:
    """Whether any of it holds the referral (rule 19)."""
    return any(finding.hold for finding in found)


def in_words(doubts: Iterable[Doubt]) -> str:
    """Several doubts, as a support agent can read them out; each once, always in one order."""
    return " ".join(doubt.words for doubt in sorted(set(doubts)))
