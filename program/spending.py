"""Which bonus minutes a call uses (rule 21)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from program.cycles import expired


@dataclass(frozen=True, slots=True)
class Spendable:
    """What is left of a grant, in minutes, and until when it can be used (UTC)."""

    grant_id: str
    remaining: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Draw:
    """How many minutes are taken from one grant, at least one."""

    grant_id: str
    minutes: int


def draws(minutes: int, lots: Iterable[Spendable], now: datetime) -> list[Draw]:
    """Take minutes from the grants of an account, the soonest to expire first (rule 21).

    What the grants do not cover is left to the plan. A grant that has expired gives nothing (rule 7).

    Args:
        minutes: what was used, at least 1.
        lots: the account's grants.
        now: when the use is recorded, UTC.

    Raises:
        ValueError: fewer minutes than one.
    """
    if minutes < 1:
        raise ValueError(f"at least one whole minute is used, not {minutes}")
    taken: list[Draw] = []
    for lot in sorted(lots, key=lambda lot: (lot.expires_at, lot.grant_id)):
        share = 0 if expired(lot.expires_at, now) else min(minutes, lot.remaining)
        if share > 0:
            taken.append(Draw(lot.grant_id, share))
            minutes -= share
    return taken
