"""A believable population to look at: who joins, shares, follows, pays and uses minutes, and when.

Pure: it follows from the seed, the number of members and the time at which it ends, and from nothing else. It says what
people, Stripe and operators do; what becomes of it is decided by the rules, when `devstack.demo` carries it out.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random
from typing import TypeVar

from program.cycles import Period, bonus_expiry
from program.doubts import Action
from program.referral import ATTRIBUTION_WINDOW, CLICK_TOLERANCE

FEWEST_MEMBERS = 12
"""With fewer, not every stage could be shown."""

HISTORY = timedelta(days=182)
"""How long before the end the first member joins: six months."""

OPERATOR = "demo-operator"

_FRIENDS = 0.58
_MOST_BY_ORDINARY = 5
_SECOND_STAR_FROM = 60
_SWEPT_AFTER = timedelta(minutes=1)
_CHANNELS = {
    "whatsapp": 34,
    "link": 16,
    "email": 14,
    "sms": 12,
    "qr": 7,
    "facebook": 6,
    "x": 5,
    "linkedin": 4,
    "code": 2,
}
"""By which way friends come; `code` is the code given at the signup, which no click goes before."""

_PLANS = {"starter": 45, "pro": 40, "power": 15}
_NAMES = (  # noqa: SIM905 - one name a line would take a page
    "Ada Amir Ana Anouk Arjun Aylin Ben Bianca Bo Camille Carlos Chloe Dana Daniel Dilara Diego Elena Eli Emeka Emma "
    "Farah Felix Fatima Finn Gabriel Greta Hana Hugo Ines Ivan Jamal Jana Jonas Julia Kai Kofi Lara Leo Lena Liam Lina "
    "Lucia Malik Marta Mateo Maya Mia Milan Mina Nadia Nico Nina Noah Nora Omar Oscar Paula Priya Rafael Rosa Ruth "
    "Sami Sara Selma Sofia Tariq Theo Tomas Uma Vera Victor Wanda Xavier Yara Yuki Zara Zoe Zeynep"
).split()


class Fate(StrEnum):
    """What happens around a friend's signup; the rules decide what becomes of the referral by it."""

    PAYS = "pays"
    PAYS_LATELY = "pays lately"
    PAID_LONG_AGO = "paid long ago"
    SIGNS_UP = "signs up, and has not paid"
    REFUNDED_IN_PART = "is given back a part before the bonus"
    DISPUTES = "disputes the payment before the bonus"
    APPROVED = "is given back a part, and an operator approves"
    DECLINED = "is given back a part, and an operator declines"
    VOIDED = "is given back a part, and an operator voids"
    REFUNDED_AFTER = "is given back everything after the bonus"
    TAKEN_BACK = "is given back everything after the bonus, and an operator voids"
    TOO_LATE = "signs up after the link has lapsed"
    MEMBER_BEFORE = "was a member before"
    SAME_EMAIL = "signs up with the referrer's e-mail address"
    KNOWN_EMAIL = "signs up with the e-mail address of another member"
    SAME_CUSTOMER = "pays as the referrer's customer"
    REFERRED_BEFORE = "has followed somebody else's link as well"
    ERASED = "has the account erased before paying"


_NEEDED = (
    Fate.PAYS_LATELY,
    Fate.PAID_LONG_AGO,
    Fate.SIGNS_UP,
    Fate.REFUNDED_IN_PART,
    Fate.TOO_LATE,
    Fate.MEMBER_BEFORE,
    Fate.VOIDED,
    Fate.TAKEN_BACK,
    Fate.SAME_CUSTOMER,
    Fate.DECLINED,
    Fate.APPROVED,
    Fate.ERASED,
    Fate.DISPUTES,
    Fate.SAME_EMAIL,
    Fate.REFUNDED_AFTER,
    Fate.REFERRED_BEFORE,
    Fate.KNOWN_EMAIL,
)
"""Each of these befalls somebody, the first seven in the smallest population too: they make every stage."""

_FATES = {
    Fate.PAYS: 640,
    Fate.SIGNS_UP: 190,
    Fate.REFUNDED_IN_PART: 15,
    Fate.DISPUTES: 8,
    Fate.APPROVED: 15,
    Fate.DECLINED: 10,
    Fate.VOIDED: 10,
    Fate.REFUNDED_AFTER: 12,
    Fate.TAKEN_BACK: 10,
    Fate.TOO_LATE: 25,
    Fate.MEMBER_BEFORE: 25,
    Fate.SAME_EMAIL: 8,
    Fate.KNOWN_EMAIL: 6,
    Fate.SAME_CUSTOMER: 8,
    Fate.REFERRED_BEFORE: 8,
    Fate.ERASED: 10,
}

_AGES = {
    Fate.PAYS_LATELY: (5.0, 8.0),
    Fate.PAID_LONG_AGO: (70.0, 80.0),
    Fate.SIGNS_UP: (0.2, 60.0),
    Fate.REFUNDED_IN_PART: (4.0, 20.0),
    Fate.DISPUTES: (4.0, 20.0),
    Fate.TOO_LATE: (2.0, 75.0),
}
"""How many days ago friends of a fate signed up, where that matters to what is seen of it today."""


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody with an account. Nobody of that name exists: the addresses are at a domain that is set aside."""

    account_id: str
    customer_id: str
    email: str
    first_name: str
    show_first_name: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Click:
    """A link followed: whose, by which way, when (UTC), and under which referral id."""

    referral_id: str
    account_id: str
    channel: str
    clicked_at: datetime


@dataclass(frozen=True, slots=True)
class Act:
    """Something that somebody does.

    Args:
        at: when, UTC.
        parties: the accounts that it touches; what touches one account happens in its order.
    """

    at: datetime
    parties: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report(Act):
    """The backend reports an account, with its Stripe customer where it has one."""

    member: Member
    customer_id: str | None


@dataclass(frozen=True, slots=True)
class TakeLink(Act):
    """A subscriber accepts the terms and takes the link."""

    account_id: str


@dataclass(frozen=True, slots=True)
class SignUp(Act):
    """A friend signs up with the token of a click."""

    member: Member
    click: Click


@dataclass(frozen=True, slots=True)
class Pay(Act):
    """A month of a plan is paid; the first (number 0) begins the subscription."""

    customer_id: str
    plan: str
    number: int
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class GiveBack(Act):
    """Money that was paid for the first month is given back: all of it, or a third."""

    customer_id: str
    plan: str
    whole: bool


@dataclass(frozen=True, slots=True)
class Dispute(Act):
    """The payment for the first month is disputed."""

    customer_id: str
    plan: str


@dataclass(frozen=True, slots=True)
class End(Act):
    """A subscription ends with its last period."""

    customer_id: str
    plan: str
    start: datetime


@dataclass(frozen=True, slots=True)
class Use(Act):
    """Minutes are used, under the backend's id of that use."""

    account_id: str
    usage_id: str
    minutes: int


@dataclass(frozen=True, slots=True)
class Decide(Act):
    """An operator decides about a referral."""

    referral_id: str
    action: Action
    note: str


@dataclass(frozen=True, slots=True)
class Sweep(Act):
    """A bonus is due: its run wakes."""

    referral_id: str


@dataclass(frozen=True, slots=True)
class Erase(Act):
    """An account is erased."""

    account_id: str


@dataclass(frozen=True, slots=True)
class Population:
    """Everybody, and everything that they do until the end, in order.

    Args:
        members: all who have an account.
        acts: what is done, the earliest first.
        clicks: links followed, whether somebody signed up with it or not.
        signups: of those, the ones with a signup, and who it was.
        star: the member with the most referrals.
        newcomer: a subscriber with a fresh link, and nobody invited yet.
        guest: a member who never subscribed, and so has no link.
    """

    members: tuple[Member, ...]
    acts: tuple[Act, ...]
    clicks: tuple[Click, ...]
    signups: Mapping[str, str]
    star: Member
    newcomer: Member
    guest: Member


def populate(seed: int, members: int, until: datetime, bonuses: Mapping[str, int]) -> Population:
    """The population of a seed.

    Args:
        seed: the same one gives the same people, another one others.
        members: how many accounts.
        until: now, whole seconds, UTC; six months lead up to it.
        bonuses: what a first payment brings each side, in minutes, by plan.

    Raises:
        ValueError: too few members.
    """
    if members < FEWEST_MEMBERS:
        raise ValueError(f"at least {FEWEST_MEMBERS} members are needed to show every stage, not {members}")
    return _Making(seed, members, until, bonuses).population()


Thing = TypeVar("Thing")


@dataclass
class _Sharer:
    """Somebody who has a link: since when, and how many friends came by it."""

    member: Member
    since: datetime
    friends: int = 0


@dataclass
class _Subscription:
    """What somebody pays for, month by month."""

    plan: str
    periods: list[Period] = field(default_factory=list)


class _Making:
    def __init__(self, seed: int, members: int, until: datetime, bonuses: Mapping[str, int]) -> None:
        # Not for secrets: what follows from a seed has to follow from it.
        self._random = Random(f"referrals {seed} {members}")  # noqa: S311
        self._key = f"demo{seed}"
        self._number = members
        self._referrals = 0
        self._until = until.replace(microsecond=0)
        self._bonuses = {plan: bonuses[plan] for plan in _PLANS if plan in bonuses}
        self._members: list[Member] = []
        self._acts: list[Act] = []
        self._clicks: list[Click] = []
        self._signups: dict[str, str] = {}
        self._stars: list[_Sharer] = []
        self._sharers: list[_Sharer] = []
        self._subscriptions: dict[str, _Subscription] = {}

    def population(self) -> Population:
        friends = max(round(self._number * _FRIENDS), 7)
        star, newcomer, guest = self._those_who_came_by_themselves(self._number - friends)
        self._friends(friends)
        for sharer in [*self._stars, *self._sharers]:
            self._mere_clicks(sharer)
        acts = sorted((act for act in self._acts if act.at <= self._until), key=lambda act: act.at)
        done = {act.click.referral_id for act in acts if isinstance(act, SignUp)}
        return Population(
            tuple(self._members),
            tuple(acts),
            tuple(sorted(self._clicks, key=lambda click: (click.clicked_at, click.referral_id))),
            {referral_id: account_id for referral_id, account_id in self._signups.items() if referral_id in done},
            star,
            newcomer,
            guest,
        )

    # Those who came by themselves

    def _those_who_came_by_themselves(self, number: int) -> tuple[Member, Member, Member]:
        star = self._star(HISTORY, "power")
        newcomer = self._subscriber(self._ago(2.2), "pro", shares_after=None)
        self._take_link(newcomer, self._ago(1.1))
        guest = self._member(self._ago(9))
        self._report(guest, guest.created_at)
        # One who has left and whose link goes on working, and one who never took a link.
        self._subscriber(self._ago(140), "starter", shares_after=timedelta(days=2), months=2)
        self._subscriber(self._ago(64), "pro", shares_after=None)
        left = number - len(self._members)
        if self._number >= _SECOND_STAR_FROM:
            self._star(timedelta(days=131), "pro")
            left -= 1
        for _ in range(left):
            created_at = self._some_time_ago(1, 178)
            if self._chance(0.12):
                self._report(other := self._member(created_at), other.created_at)
                continue
            shares_after = timedelta(hours=self._random.uniform(1, 200)) if self._chance(0.65) else None
            self._subscriber(created_at, self._plan(), shares_after=shares_after, months=self._months(0.2))
        return star, newcomer, guest

    def _star(self, age: timedelta, plan: str) -> Member:
        member = self._subscriber(self._until - age, plan, shares_after=None, shows_name=True)
        since = member.created_at + timedelta(hours=2)
        self._take_link(member, since)
        self._stars.append(_Sharer(member, since))
        return member

    def _subscriber(
        self,
        created_at: datetime,
        plan: str,
        *,
        shares_after: timedelta | None,
        months: int | None = None,
        shows_name: bool | None = None,
    ) -> Member:
        member = self._member(created_at, shows_name=shows_name)
        self._report(member, created_at, member.customer_id)
        paid_at = self._pays(member, plan, created_at + timedelta(minutes=7), months)
        if shares_after is not None:
            self._shares(member, paid_at + _seconds(shares_after))
        return member

    # Friends

    def _friends(self, number: int) -> None:
        fates = [*_NEEDED[:number], *(self._drawn(_FATES) for _ in range(number - len(_NEEDED)))]
        dated = [(self._joined(fate), fate) for fate in fates]
        # In the order of time, so that a friend can have friends.
        for created_at, fate in sorted(dated):
            self._friend(created_at, fate)

    def _joined(self, fate: Fate) -> datetime:
        if fate in _AGES:
            return self._ago(self._random.uniform(*_AGES[fate]))
        return self._some_time_ago(2, 172)

    def _friend(self, created_at: datetime, fate: Fate) -> None:
        clicked_at = self._clicked(created_at, fate)
        sharer = self._sharer(clicked_at)
        referrer = sharer.member
        sharer.friends += 1
        email, channel = None, self._drawn(_CHANNELS)
        if fate is Fate.SAME_EMAIL:
            email = referrer.email.upper()
        elif fate is Fate.KNOWN_EMAIL:
            email = self._somebody_else(referrer, clicked_at).email
        if channel == "code" and fate in (Fate.TOO_LATE, Fate.MEMBER_BEFORE):
            channel = "link"
        elif channel == "code":
            # As the API has it: a code counts as a click right before the account was made.
            clicked_at = created_at - CLICK_TOLERANCE
        member = self._member(created_at, email=email)
        signed_up_at = created_at + timedelta(seconds=self._random.randint(2, 40))
        if fate is Fate.TOO_LATE:
            signed_up_at = created_at + timedelta(hours=3)
        elif fate is Fate.MEMBER_BEFORE:
            self._report(member, created_at, member.customer_id)
            self._pays(member, self._plan(), created_at + timedelta(minutes=5), None)
            signed_up_at = clicked_at + timedelta(minutes=3)
        click = self._signs_up(member, referrer, channel, clicked_at, signed_up_at)
        self._goes_on(member, referrer, click, signed_up_at, fate)

    def _clicked(self, created_at: datetime, fate: Fate) -> datetime:
        if fate is Fate.TOO_LATE:
            return created_at - ATTRIBUTION_WINDOW - _seconds(timedelta(days=self._random.uniform(1, 5)))
        if fate is Fate.MEMBER_BEFORE:
            return min(created_at + _seconds(timedelta(days=self._random.uniform(1, 40))), self._ago(0.5))
        if self._chance(0.25):
            return created_at - _seconds(timedelta(days=self._random.uniform(0.2, 9)))
        return created_at - timedelta(seconds=self._random.randint(90, 2400))

    def _sharer(self, clicked_at: datetime) -> _Sharer:
        """Whose link was followed then: often a star's, else anybody's."""
        stars = [star for star in self._stars if star.since < clicked_at]
        others = [other for other in self._sharers if other.since < clicked_at and other.friends < _MOST_BY_ORDINARY]
        for star, share in zip(stars, (0.4, 0.3), strict=False):
            if self._chance(share) or not others:
                return star
        return self._random.choice(others)

    def _somebody_else(self, referrer: Member, before: datetime) -> Member:
        known = [one for one in self._members if one.created_at < before and one is not referrer]
        return self._random.choice(known or self._members[:1])

    def _signs_up(
        self, member: Member, referrer: Member, channel: str, clicked_at: datetime, at: datetime, *others: str
    ) -> Click:
        click = Click(self._referral_id(), referrer.account_id, channel, clicked_at)
        if channel != "code":
            self._clicks.append(click)
        self._signups[click.referral_id] = member.account_id
        # Whoever has the same e-mail address has to be there before.
        others += tuple(one.account_id for one in self._members if one.email.lower() == member.email.lower())
        parties = {member.account_id, referrer.account_id, *others}
        self._acts.append(SignUp(at, tuple(sorted(parties)), member, click))
        return click

    def _goes_on(self, member: Member, referrer: Member, click: Click, signed_up_at: datetime, fate: Fate) -> None:
        both = (member.account_id, referrer.account_id)
        soon = signed_up_at + _seconds(
            timedelta(hours=self._random.choice([0.1, 0.3, 2, 20, 50]) + self._random.random())
        )
        match fate:
            case Fate.PAYS | Fate.PAYS_LATELY | Fate.PAID_LONG_AGO | Fate.REFERRED_BEFORE:
                self._becomes_member(member, referrer, click, soon)
                if fate is Fate.REFERRED_BEFORE:
                    self._reports_second_link(member, referrer, signed_up_at)
            case Fate.REFUNDED_IN_PART | Fate.APPROVED | Fate.DECLINED | Fate.VOIDED | Fate.DISPUTES:
                self._pays_doubtfully(member, referrer, click, soon, fate)
            case Fate.REFUNDED_AFTER | Fate.TAKEN_BACK:
                plan = self._becomes_member(member, referrer, click, soon)
                doubted_at = soon + timedelta(days=4)
                self._acts.append(GiveBack(doubted_at, both, member.customer_id, plan, whole=True))
                if fate is Fate.TAKEN_BACK:
                    note = "The payment was given back; the friend asked for it within days."
                    self._acts.append(
                        Decide(doubted_at + timedelta(days=1), both, click.referral_id, Action.VOID, note)
                    )
            case Fate.SAME_CUSTOMER:
                self._acts.append(Report(soon, both, member, referrer.customer_id))
            case Fate.ERASED:
                self._acts.append(Erase(soon + timedelta(days=2), both, member.account_id))
            case _:
                pass

    def _becomes_member(self, member: Member, referrer: Member, click: Click, at: datetime) -> str:
        """Pay, and perhaps share; gives the plan."""
        plan = self._plan()
        self._report(member, at - timedelta(minutes=1), member.customer_id)
        self._pays(member, plan, at, self._months(0.15), referrer)
        self._bonus(member, referrer, click, plan, at)
        if self._chance(0.5):
            self._shares(member, at + _seconds(timedelta(hours=self._random.uniform(1, 150))))
        return plan

    def _pays_doubtfully(self, member: Member, referrer: Member, click: Click, at: datetime, fate: Fate) -> None:
        """Pay, and have it given back in part, or dispute it, before the backend tells whose customer that is."""
        both, plan = (member.account_id, referrer.account_id), self._plan()
        self._pays(member, plan, at, None, referrer)
        doubted_at = at + timedelta(hours=1)
        if fate is Fate.DISPUTES:
            self._acts.append(Dispute(doubted_at, both, member.customer_id, plan))
        else:
            self._acts.append(GiveBack(doubted_at, both, member.customer_id, plan, whole=False))
        self._acts.append(Report(at + timedelta(hours=2), both, member, member.customer_id))
        decided_at = at + timedelta(days=1, hours=3)
        notes = {
            Fate.APPROVED: (Action.APPROVE, "A voucher was honoured late; the rest was really paid."),
            Fate.DECLINED: (Action.REJECT, "Most of it went back the same day."),
            Fate.VOIDED: (Action.VOID, "Both accounts belong to one household that shares a phone."),
        }
        if fate in notes:
            action, note = notes[fate]
            self._acts.append(Decide(decided_at, both, click.referral_id, action, note))
        if fate is Fate.APPROVED:
            self._bonus(member, referrer, click, plan, decided_at)

    def _reports_second_link(self, member: Member, referrer: Member, signed_up_at: datetime) -> None:
        clicked_at = member.created_at - timedelta(seconds=80)
        others = [one for one in [*self._stars, *self._sharers] if one.member is not referrer]
        known = [one for one in others if one.since < clicked_at]
        if known:
            other = self._random.choice(known).member
            self._signs_up(member, other, "email", clicked_at, signed_up_at + timedelta(minutes=1), referrer.account_id)

    def _bonus(self, member: Member, referrer: Member, click: Click, plan: str, at: datetime) -> None:
        """What both do with the minutes that they get then, and when those are due."""
        both = (member.account_id, referrer.account_id)
        minutes = self._bonuses[plan]
        for account_id in both:
            expires_at = bonus_expiry(at, self._periods(account_id))
            self._acts.append(Sweep(expires_at + _SWEPT_AFTER, both, click.referral_id))
            begin, end = at + timedelta(hours=1), min(expires_at, self._until)
            if begin >= end or self._chance(0.3):
                continue
            takes = [minutes] if self._chance(0.15) else self._some_minutes(minutes)
            for number, taken in enumerate(takes):
                when = begin + _seconds((end - begin) * self._random.random())
                usage_id = f"{self._key}-{click.referral_id[:10]}-{account_id[-4:]}-{number}"
                self._acts.append(Use(when, (account_id,), account_id, usage_id, taken))

    def _some_minutes(self, minutes: int) -> list[int]:
        return [self._random.randint(1, max(minutes // 3, 1)) for _ in range(self._random.randint(1, 3))]

    # What everybody does

    def _member(self, created_at: datetime, *, email: str | None = None, shows_name: bool | None = None) -> Member:
        number = len(self._members) + 1
        name = self._random.choice(_NAMES)
        shows = self._chance(0.6) if shows_name is None else shows_name
        member = Member(
            account_id=f"{self._key}-{number:04}",
            customer_id=f"cus_{self._key}n{number:04}",
            email=email or f"{name.lower()}.{number}.{self._key}@example.com",
            first_name=name,
            show_first_name=shows,
            created_at=created_at,
        )
        self._members.append(member)
        return member

    def _report(self, member: Member, at: datetime, customer_id: str | None = None) -> None:
        self._acts.append(Report(at, (member.account_id,), member, customer_id))

    def _pays(
        self, member: Member, plan: str, at: datetime, months: int | None, referrer: Member | None = None
    ) -> datetime:
        """Subscribe, and pay month by month until the end or for so many months; gives when it begins."""
        both = (member.account_id, *([referrer.account_id] if referrer else []))
        subscription = self._subscriptions[member.account_id] = _Subscription(plan)
        number, start = 0, at
        while start <= self._until and (months is None or number < months):
            end = _months_after(at, number + 1)
            subscription.periods.append(Period(member.customer_id, start, end, paid=True))
            # A renewal is collected an hour after the period's end.
            paid_at = start + timedelta(hours=1) if number else start
            parties = both if number == 0 else both[:1]
            self._acts.append(Pay(paid_at, parties, member.customer_id, plan, number, start, end))
            number, start = number + 1, end
        if months is not None:
            last = subscription.periods[-1].start
            self._acts.append(End(start, (member.account_id,), member.customer_id, plan, last))
        return at

    def _periods(self, account_id: str) -> Sequence[Period]:
        subscription = self._subscriptions.get(account_id)
        return subscription.periods if subscription else ()

    def _take_link(self, member: Member, at: datetime) -> None:
        self._acts.append(TakeLink(at, (member.account_id,), member.account_id))

    def _shares(self, member: Member, at: datetime) -> None:
        """Take a link, if there is a paid period then, and let friends follow it."""
        if at <= self._until and any(period.start <= at < period.end for period in self._periods(member.account_id)):
            self._take_link(member, at)
            self._sharers.append(_Sharer(member, at))

    def _mere_clicks(self, sharer: _Sharer) -> None:
        """Links are followed more often than somebody signs up."""
        days = (self._until - sharer.since) / timedelta(days=1)
        most = 2 + sharer.friends * 3
        channels = {channel: weight for channel, weight in _CHANNELS.items() if channel != "code"}
        # The first of them not long ago, so that somebody is still expected.
        for number in range(max(self._random.randint(most // 2, most), 1)):
            clicked_at = self._ago(self._random.uniform(min(0.01, days), days if number else min(days, 5)))
            referral_id, channel = self._referral_id(), self._drawn(channels)
            self._clicks.append(Click(referral_id, sharer.member.account_id, channel, clicked_at))

    # Drawing

    def _referral_id(self) -> str:
        # Of their time as well: one Temporal may outlive several databases.
        self._referrals += 1
        named = f"{self._key} {self._number} {self._until.isoformat()} {self._referrals}"
        return hashlib.sha256(named.encode()).hexdigest()[:24]

    def _ago(self, days: float) -> datetime:
        return self._until - _seconds(timedelta(days=days))

    def _some_time_ago(self, least: float, most: float) -> datetime:
        """More people join lately than at the beginning."""
        return self._ago(least + (most - least) * math.pow(self._random.random(), 1.3))

    def _months(self, chance_of_leaving: float) -> int | None:
        return self._random.randint(1, 4) if self._chance(chance_of_leaving) else None

    def _plan(self) -> str:
        return self._drawn({plan: _PLANS[plan] for plan in self._bonuses})

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _drawn(self, weights: Mapping[Thing, int]) -> Thing:
        return self._random.choices(list(weights), list(weights.values()))[0]


def _seconds(span: timedelta) -> timedelta:
    """Whole seconds, as Stripe has them."""
    return timedelta(seconds=int(span.total_seconds()))


def _months_after(begin: datetime, months: int) -> datetime:
    """So many months later; in a short month on its last day that every month has."""
    year, month = divmod(begin.month - 1 + months, 12)
    return begin.replace(year=begin.year + year, month=month + 1, day=min(begin.day, 28))
