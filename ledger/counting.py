"""What the ledger did, as counters for Prometheus: the same ones in every program that changes it.

Each counter begins with a zero for every value that its label can have, so that the first thing that happens is seen
as a change, and a dashboard asks for nothing that is not there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from ledger.happenings import Happening, What
from program.doubts import Action, Doubt
from program.eligibility import Refusal
from program.referral import Role, Stage

CREDIT_SECONDS = (0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600)
"""Where the histogram of credits is cut: usually within seconds, by reconciliation within the hour."""

Labels = Mapping[str, str]
Add = Callable[[float, Labels], None]


class Meter(Protocol):
    """Who keeps the numbers: Temporal's SDK in the worker, Prometheus's own library in the starter."""

    def counter(self, name: str, description: str, labels: Sequence[str]) -> Add:
        """Make a counter."""
        ...

    def histogram(self, name: str, description: str) -> Add:
        """Make the histogram of credits, in seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Counted:
    """What is counted.

    Args:
        what: what, and the metric's name.
        description: what Prometheus says that it is.
        labels: what each label can be.
    """

    what: What
    description: str
    labels: Mapping[str, Sequence[str]]


def counted(plans: Iterable[str], endpoints: Iterable[str] = ()) -> list[Counted]:
    """Everything that is counted, for the plans on sale and the endpoints that messages go to, by their names."""
    doubts, roles = [str(doubt) for doubt in Doubt], [str(role) for role in Role]
    return [
        Counted(
            What.SIGNUP_DECIDED,
            "Reported signups that were decided, by outcome.",
            {"outcome": [Stage.SIGNED_UP, Stage.REFUSED, Stage.LAPSED]},
        ),
        Counted(
            What.REFUSED,
            "Referrals that ended without a bonus although somebody signed up, by reason.",
            {"reason": list(Refusal)},
        ),
        Counted(What.HELD, "Doubts for which a referral was held until an operator decides.", {"reason": doubts}),
        Counted(What.MARKED, "Doubts for which a credited referral was marked.", {"reason": doubts}),
        Counted(What.CREDITED, "Referrals credited: both balances, in one transaction.", {"plan": list(plans)}),
        Counted(What.SETTLED, "Referrals that are over: both bonuses have ended.", {}),
        Counted(What.DECIDED, "What operators decided.", {"action": list(Action)}),
        Counted(What.MINUTES_CREDITED, "Bonus minutes credited, by side.", {"role": roles}),
        Counted(What.MINUTES_EXPIRED, "Bonus minutes that expired unused, by side.", {"role": roles}),
        Counted(What.MINUTES_VOIDED, "Bonus minutes taken back unused, by side.", {"role": roles}),
        Counted(
            What.DELIVERED,
            "Messages to the backend whose delivery ended, by endpoint and outcome.",
            {"endpoint": list(endpoints), "outcome": ["delivered", "given_up"]},
        ),
    ]


class Counting:
    """Counts what transactions did. Give it to a `Database`."""

    def __init__(self, meter: Meter, plans: Iterable[str], endpoints: Iterable[str] = ()) -> None:
        """Begin with zero."""
        self._add: dict[What, Add] = {}
        for each in counted(plans, endpoints):
            add = meter.counter(each.what, each.description, list(each.labels))
            for values in product(*each.labels.values()):
                add(0, dict(zip(each.labels, map(str, values), strict=True)))
            self._add[each.what] = add
        self._add[What.CREDITED_AFTER] = meter.histogram(
            What.CREDITED_AFTER,
            "Seconds from the creation of Stripe's event, or what else came last, until both balances were credited.",
        )

    def __call__(self, happenings: Sequence[Happening]) -> None:
        """Count what a transaction did."""
        for each in happenings:
            self._add[each.what](each.number, {name: str(value) for name, value in each.labels.items()})
