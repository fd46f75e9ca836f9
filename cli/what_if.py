"""A changed rule, tried over past referrals: what would differ, by the rules themselves. Nothing is changed by it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fractions import Fraction

from rich.console import Console

from cli.answers import row, shown, table
from ledger import hindsight, invariants
from ledger.database import Database
from program.hindsight import Ending, Past, Rules, UndecidableError, Verdict, verdict_by
from program.plans import BONUS_SHARE, Plans, bonus_minutes
from program.referral import REPORTING_GRACE
from program.signals import DEVICES_KEPT, Handling, SignalPolicy, asks_for_signs

SAY_EVERY = 500
"""After how many referrals it is told how far it is."""


class NothingTriedError(Exception):
    """The rules to be tried are the ones that there are."""


class NoBonusError(Exception):
    """The share that is tried would bring a plan no bonus: the message names it."""


@dataclass
class Group:
    """Referrals of which the same becomes, by the rules as they are and by those that are tried.

    Args:
        now: what becomes of them by the rules as they are.
        tried: what would.
        number: how many.
        minutes: what all of them together would bring more, both sides counted.
        examples: some of them.
    """

    now: str
    tried: str
    number: int = 0
    minutes: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Side:
    """What the rules bring: how many referrals are credited, and how many minutes, both sides counted."""

    credited: int = 0
    minutes: int = 0

    def add(self, verdict: Verdict) -> None:
        """Count what becomes of a referral."""
        if verdict.ending is Ending.CREDITED:
            self.credited += 1
            self.minutes += 2 * verdict.minutes


@dataclass
class Tried:
    """What a trial came to.

    Args:
        since: none that was clicked before was looked at, UTC.
        changed: what was changed of the rules, in words.
        looked_at: how many referrals were looked at.
        now: what the rules as they are bring.
        tried: what those that were tried would.
        differences: where they differ.
        otherwise: where the rules as they are decide otherwise by now than was decided: of these a trial says little.
        undecidable: of which one of both cannot be said, and why not; they are in neither sum.
        limits: what a trial cannot know, in words.
    """

    since: datetime | None
    changed: list[str]
    looked_at: int = 0
    now: Side = field(default_factory=Side)
    tried: Side = field(default_factory=Side)
    differences: list[Group] = field(default_factory=list)
    otherwise: list[Group] = field(default_factory=list)
    undecidable: list[Group] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)


class _Groups:
    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._groups: dict[tuple[str, str], Group] = {}

    def add(self, referral_id: str, now: str, tried: str, minutes: int = 0) -> None:
        group = self._groups.setdefault((now, tried), Group(now, tried))
        group.number += 1
        group.minutes += minutes
        if len(group.examples) < self._keep:
            group.examples.append(referral_id)

    @property
    def by_number(self) -> list[Group]:
        return sorted(self._groups.values(), key=lambda group: (-group.number, group.now, group.tried))


async def try_over_the_past(
    database: Database, now: Rules, tried: Rules, since: datetime | None, keep: int, say: Callable[[int], None]
) -> Tried:
    """Ask the rules as they are, and those that are tried, about every past referral; in one read-only snapshot.

    Args:
        database: the ledger.
        now: the rules as they are.
        tried: those that are tried.
        since: none that was clicked before, UTC.
        keep: how many referrals are named of each group.
        say: hears how many were looked at.

    Raises:
        NothingTriedError: both are the same.
        NoBonusError: a plan would bring no bonus.
    """
    changed = changes(now, tried)
    if not changed:
        raise NothingTriedError("nothing is changed: give --plans, --bonus-percent, --attribution-window or a sign")
    for plan in tried.plans:
        if bonus_minutes(plan.minutes, tried.share) < 1:
            raise NoBonusError(f"{plan.id} would bring a bonus of none")
    found = Tried(since, changed, limits=limits(now, tried))
    differences, otherwise, undecidable = _Groups(keep), _Groups(keep), _Groups(keep)
    policies = [rules.policy for rules in (now, tried) if asks_for_signs(rules.policy)]
    most = max((policy.signups_a_day for policy in policies), default=None)
    async with database.snapshot() as transaction:
        await invariants.begin(transaction)
        async for past in hindsight.past(transaction, since, most):
            found.looked_at += 1
            if found.looked_at % SAY_EVERY == 0:
                say(found.looked_at)
            _compare(past, now, tried, found, (differences, otherwise, undecidable))
    found.differences, found.otherwise = differences.by_number, otherwise.by_number
    found.undecidable = undecidable.by_number
    return found


def _compare(past: Past, now: Rules, tried: Rules, found: Tried, groups: tuple[_Groups, _Groups, _Groups]) -> None:
    differences, otherwise, undecidable = groups
    before = _as_it_was_compared(now, past)
    if not before.same_as(past.verdict):
        otherwise.add(past.referral_id, past.verdict.words, before.words)
    try:
        # Where cards are compared already, one that was not was none to be compared.
        after = _as_it_was_compared(tried, past) if now.policy.same_card else verdict_by(tried, past)
    except UndecidableError as error:
        undecidable.add(past.referral_id, before.words, str(error))
        return
    found.now.add(before)
    found.tried.add(after)
    if not after.same_as(before):
        more = 2 * (after.minutes - before.minutes)
        differences.add(past.referral_id, before.words, after.words, more)


def _as_it_was_compared(rules: Rules, past: Past) -> Verdict:
    """What becomes of a referral by rules under which its card was compared, or was none to be compared."""
    try:
        return verdict_by(rules, past)
    except UndecidableError:
        return verdict_by(replace(rules, policy=replace(rules.policy, same_card=False)), past)


def changes(now: Rules, tried: Rules) -> list[str]:
    """What is changed, in words; nothing where both are the same."""
    said: list[str] = []
    if _as_data(now.plans) != _as_data(tried.plans):
        said.append("other plans")
    if tried.share != now.share:
        said.append(f"a bonus of {_percent(tried.share)} instead of {_percent(now.share)}")
    if tried.window is not None and tried.window != now.window:
        said.append(f"a click counts for {_duration(tried.window)}")
    for name in ("same_card", "same_device", "disposable_email", "many_signups", "signups_a_day"):
        before, after = getattr(now.policy, name), getattr(tried.policy, name)
        if before != after:
            said.append(f"{name.replace('_', ' ')}: {_handling(after)} instead of {_handling(before)}")
    return said


def limits(now: Rules, tried: Rules) -> list[str]:
    """What a trial of this cannot know."""
    said = [
        "What people would have done otherwise is not known: who pays, for what and when is taken as it was.",
        "What was refused, or ended by an operator, stays so.",
        "A payment is taken as it is known by now, of the one that brought a bonus without later refunds and disputes.",
    ]
    if tried.window is not None:
        said.append(
            "Clicks without a signup are not on record, nor signups that were turned away as too late: a longer window "
            f"would bring more than this. A signup reported more than {REPORTING_GRACE.days} days after a shorter one "
            "counts as too late where the time of the report is on record."
        )
    if tried.policy.same_device is not Handling.OFF and now.policy.same_device is Handling.OFF:
        said.append(
            f"Of an account's networks and browsers the {DEVICES_KEPT} seen last are kept, while the starter is told "
            "to: what was seen after the credit counts here, and what was never kept does not."
        )
    if tried.policy.same_card and not now.policy.same_card:
        said.append("Cards are compared right before a credit and at no other time: where none was, nothing is said.")
    return said


def _as_data(plans: Plans) -> list[object]:
    return [*plans, plans.not_plans]


def _percent(share: Fraction) -> str:
    return f"{float(share * 100):g}%"


def _duration(window: timedelta) -> str:
    return f"{window.days} days" if window == timedelta(days=window.days) else str(window)


def _handling(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def rules(
    now: Rules, plans: Plans | None, percent: Fraction | None, window: timedelta | None, policy: SignalPolicy
) -> Rules:
    """The rules as they are, but for what is given."""
    return Rules(plans or now.plans, policy, BONUS_SHARE if percent is None else percent / 100, window)


def render(found: Tried, to: Console) -> None:
    """Show what a trial came to."""
    since = f" clicked since {shown(found.since)}" if found.since else ""
    to.print(f"tried: {'; '.join(found.changed)}\nlooked at: {found.looked_at} referrals{since}; nothing was changed")
    sums = table("", "credited", "minutes of both sides")
    row(sums, "by the rules as they are", found.now.credited, found.now.minutes)
    row(sums, "by those tried", found.tried.credited, found.tried.minutes)
    credited, minutes = found.tried.credited - found.now.credited, found.tried.minutes - found.now.minutes
    row(sums, "difference", f"{credited:+d}", f"{minutes:+d}")
    to.print(sums)
    _groups("What would differ", ("", "now", "tried", "minutes", "for example"), found.differences, to)
    _groups("Cannot be said", ("", "now", "why not", "", "for example"), found.undecidable, to)
    _groups(
        "By the rules as they are decided otherwise by now than it was then",
        ("", "was", "would be", "", "for example"),
        found.otherwise,
        to,
    )
    if not found.differences:
        to.print("\nnothing would differ")
    to.print("\n" + "\n".join(found.limits), soft_wrap=True)


def _groups(title: str, columns: Sequence[str], groups: list[Group], to: Console) -> None:
    if groups:
        shown_groups = table(*columns, title=f"\n{title}")
        for each in groups:
            minutes = f"{each.minutes:+d}" if each.minutes else ""
            row(shown_groups, each.number, each.now, each.tried, minutes, each.examples)
        to.print(shown_groups)
