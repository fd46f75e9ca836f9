"""Which fault happens at which step of the load: it follows from the seed alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class How(StrEnum):
    """How a fault is done."""

    KILL = "kill"
    """SIGKILL, at a random moment."""
    STOP = "stop"
    """SIGSTOP, and SIGCONT some seconds later."""
    CRASH = "crash"
    """One process of PostgreSQL is killed, and PostgreSQL throws out everybody and recovers."""
    CUT = "cut"
    """All connections between a program and a server break, and none can be made for some seconds."""
    WORST = "worst"
    """At the worst moment of a step, seen on the wire to PostgreSQL."""
    ANSWER = "answer"
    """Temporal has done what it was asked to, and the answer does not arrive."""
    DISK = "disk"
    """PostgreSQL's disk is full for some seconds."""
    CLOCK = "clock"
    """The ledger's clock is a minute off for some seconds."""
    AWAY = "away"
    """Somebody else's server answers nobody for some seconds."""
    LOST = "lost"
    """Stripe's events do not arrive for a while; only reconciliation can find them."""


class Kind(StrEnum):
    """What somebody who uses the program goes through, in one story."""

    PLAIN = "plain"
    PAID_BEFORE_LINKED = "paid before the customer was linked"
    STAR = "one of many friends of one referrer"
    SELF = "self-referral: the referrer's own account"
    SAME_EMAIL = "self-referral: the referrer's e-mail address"
    REFUNDED_BEFORE = "wholly refunded before the credit"
    HELD_APPROVED = "refunded in part, held, approved"
    HELD_REJECTED = "paid with the referrer's card, held, rejected"
    DISPUTED = "disputed after the credit"
    VOIDED = "refunded after the credit, voided"
    ERASED_BEFORE = "the friend was erased before the payment"
    ERASED_AFTER = "the friend was erased after the credit"
    LAPSED = "lapsed"


@dataclass(frozen=True)
class Fault:
    """A fault.

    Args:
        name: for the report; the same for all of its kind.
        how: how it is done.
        whom: which process it hits, or whose connections.
        what: the step, the server that is cut off, or by what it is hit.
        seconds: how long it lasts, or how long after its step a random one falls.
        needs: what the load does at the step, where the fault waits for something rare.
    """

    name: str
    how: How
    whom: str
    what: str = ""
    seconds: float = 0.0
    needs: Kind | None = None


STEPS = {
    "signup attributed": r"UPDATE referral SET .*signed_up_at",
    "both credited": r"INSERT INTO grant_lot",
    "bonus expired": r"UPDATE grant_lot SET .*expired_at",
    "decision": r"INSERT INTO review\b",
    "delivery written down": r"INSERT INTO delivery\b",
    "signup reserved": r"INSERT INTO referral \(",
    "event stored": r"INSERT INTO paid_period\b",
    "event told": r"UPDATE stripe_event SET signalled_at",
    "usage recorded": r"INSERT INTO operation\b",
    "account reported": r"INSERT INTO account\b",
    "account erased": r"UPDATE account SET .*erased_at",
}
"""The steps whose worst moments are waited for: what one statement of their transaction looks like."""


def _worst(whom: str, step: str, what: str, needs: Kind | None = None) -> Fault:
    words = {
        "kill": f"{whom} killed after the commit and before the answer: {step}",
        "kill before": f"{whom} killed before the commit: {step}",
        "cut": f"connection cut after the commit and before the answer: {whom}, {step}",
        "postgres": f"PostgreSQL killed after the commit and before the answer: {step}",
        "temporal": f"Temporal killed between event stored and workflow signalled: {step}",
        "away": f"Temporal out of reach between event stored and workflow signalled: {step}",
        "between": "worker killed between two expiries",
    }
    # Longer than the starter waits for Temporal.
    seconds = 7.0 if what == "away" else 0.0
    return Fault(words[what], How.WORST, whom, f"{what}: {step}", seconds, needs)


RANDOM_MOMENTS = (
    *(Fault(f"{name} killed", How.KILL, name) for name in ("worker", "starter", "temporal", "postgres")),
    *(
        Fault(f"{name} stopped for {seconds:.0f} s", How.STOP, name, seconds=seconds)
        for name, seconds in (("worker", 4.0), ("starter", 2.0), ("temporal", 3.0), ("postgres", 3.0))
    ),
    Fault("one process of PostgreSQL killed", How.CRASH, "postgres"),
    *(
        Fault(f"connections cut for 2 s: {program} and {server}", How.CUT, program, server, 2.0)
        for program in ("worker", "starter")
        for server in ("postgres", "temporal")
    ),
)
"""At any moment."""

WORST_MOMENTS = (
    _worst("worker", "signup attributed", "kill", Kind.PLAIN),
    _worst("worker", "both credited", "kill", Kind.PLAIN),
    _worst("worker", "both credited", "kill before", Kind.PLAIN),
    _worst("worker", "both credited", "cut", Kind.PLAIN),
    _worst("worker", "both credited", "postgres", Kind.PLAIN),
    _worst("worker", "bonus expired", "between", Kind.PLAIN),
    _worst("worker", "bonus expired", "kill", Kind.PLAIN),
    _worst("worker", "bonus expired", "cut", Kind.PLAIN),
    _worst("worker", "delivery written down", "kill", Kind.PLAIN),
    _worst("worker", "decision", "kill", Kind.HELD_APPROVED),
    _worst("starter", "event stored", "kill", Kind.PLAIN),
    _worst("starter", "event stored", "temporal", Kind.PLAIN),
    _worst("starter", "event stored", "away", Kind.PLAIN),
    _worst("starter", "event told", "kill before", Kind.PLAIN),
    _worst("starter", "event told", "kill", Kind.PLAIN),
    _worst("starter", "signup reserved", "kill", Kind.PLAIN),
    _worst("starter", "signup reserved", "away", Kind.PLAIN),
    _worst("starter", "usage recorded", "kill", Kind.PLAIN),
    _worst("starter", "usage recorded", "cut", Kind.PLAIN),
    _worst("starter", "account reported", "kill", Kind.PLAIN),
    _worst("starter", "account erased", "kill", Kind.ERASED_AFTER),
    Fault("answer of Temporal lost, starter killed", How.ANSWER, "starter", "kill", needs=Kind.PLAIN),
    Fault("answer of Temporal lost, starter's connection cut", How.ANSWER, "starter", "cut", needs=Kind.PLAIN),
    Fault("answer of Temporal lost, worker killed", How.ANSWER, "worker", "kill", needs=Kind.PLAIN),
    Fault("answer of Temporal lost, worker's connection cut", How.ANSWER, "worker", "cut", needs=Kind.PLAIN),
)
"""Where it hurts most."""

SURROUNDINGS = (
    Fault("disk full", How.DISK, "postgres", seconds=3.0, needs=Kind.PLAIN),
    Fault("ledger's clock a minute ahead", How.CLOCK, "postgres", "60", 4.0, Kind.PLAIN),
    Fault("ledger's clock a minute behind", How.CLOCK, "postgres", "-60", 4.0, Kind.PLAIN),
    Fault("Stripe's API out of reach", How.AWAY, "stripe", seconds=3.0, needs=Kind.PLAIN),
    Fault("the backend's endpoint out of order", How.AWAY, "backend", seconds=3.0, needs=Kind.PLAIN),
    Fault("Stripe's events lost", How.LOST, "starter", seconds=3.0, needs=Kind.PLAIN),
)
"""What else can go wrong with a machine, a network, Stripe."""

ALL = (*RANDOM_MOMENTS, *WORST_MOMENTS, *SURROUNDINGS)

_IN_SHORT = {
    "worker killed",
    "temporal killed",
    "connections cut for 2 s: starter and temporal",
    "worker killed after the commit and before the answer: both credited",
    "worker killed between two expiries",
    "starter killed after the commit and before the answer: event stored",
    "Temporal out of reach between event stored and workflow signalled: event stored",
    "PostgreSQL killed after the commit and before the answer: both credited",
    "answer of Temporal lost, worker killed",
    "disk full",
    "ledger's clock a minute ahead",
    "Stripe's events lost",
}
SHORT = tuple(fault for fault in ALL if fault.name in _IN_SHORT)
"""One of each sort, for a run of a minute or so. With a clock behind expiries are late by that minute: not in here."""

_SHARES = {
    Kind.PLAIN: 8,
    Kind.PAID_BEFORE_LINKED: 2,
    Kind.STAR: 3,
    Kind.SELF: 1,
    Kind.SAME_EMAIL: 1,
    Kind.REFUNDED_BEFORE: 1,
    Kind.HELD_APPROVED: 1,
    Kind.HELD_REJECTED: 1,
    Kind.DISPUTED: 1,
    Kind.VOIDED: 1,
    Kind.ERASED_BEFORE: 1,
    Kind.ERASED_AFTER: 1,
    Kind.LAPSED: 1,
}
"""How many of each kind of story there are in a round."""


@dataclass(frozen=True)
class Step:
    """One step of the load: the story that begins with it, its own seed, and the fault that comes with it."""

    number: int
    kind: Kind
    seed: int
    fault: Fault | None = None


def schedule(seed: int, steps: int, faults: Sequence[Fault] = ALL, every: int = 2, quiet: int = 3) -> list[Step]:
    """What happens at each step.

    Args:
        seed: all of it follows from it.
        steps: how many there are.
        faults: each comes once in a round, in an order of its own in each.
        every: there is a fault at every so many steps.
        quiet: how many steps at the beginning have none.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    to_come: list[Fault] = []
    kinds: list[Kind] = []
    plan: list[Step] = []
    for number in range(steps):
        if not kinds:
            kinds = [kind for kind, share in _SHARES.items() for _ in range(share)]
            chance.shuffle(kinds)
        fault = None
        if number >= quiet and (number - quiet) % every == 0:
            if not to_come:
                to_come = list(faults)
                chance.shuffle(to_come)
            fault = to_come.pop()
        kind = fault.needs if fault is not None and fault.needs is not None else kinds.pop()
        plan.append(Step(number, kind, chance.getrandbits(32), fault))
    return plan
