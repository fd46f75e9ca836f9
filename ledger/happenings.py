"""What a transaction did, in numbers: told once it is committed, and only by the transaction that did it.

Whoever repeats a step finds it done and tells of nothing. No ids: what is counted is about nobody (rule 24).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ledger import database
from ledger.database import Transaction


class What(StrEnum):
    """What can happen, by the name of the metric that it is counted in."""

    SIGNUP_DECIDED = "referrals_signups_decided_total"
    REFUSED = "referrals_refusals_total"
    HELD = "referrals_held_total"
    MARKED = "referrals_marked_total"
    CREDITED = "referrals_credits_total"
    CREDITED_AFTER = "referrals_credit_seconds"
    SETTLED = "referrals_settled_total"
    DECIDED = "referrals_decisions_total"
    MINUTES_CREDITED = "referrals_minutes_credited_total"
    MINUTES_EXPIRED = "referrals_minutes_expired_total"
    MINUTES_VOIDED = "referrals_minutes_voided_total"
    DELIVERED = "referrals_deliveries_total"


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened.

    Args:
        what: what.
        labels: which kind of it, in words of closed sets.
        number: how many, or how long in seconds.
    """

    what: What
    labels: Mapping[str, str]
    number: float = 1


def happened(transaction: Transaction, what: What, number: float = 1, **labels: str) -> None:
    """Note that something happened, to be told once the transaction is committed."""
    database.note(transaction, Happening(what, labels, number))
