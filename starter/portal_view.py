"""What a member's dashboard shows: the ledger's numbers in the words of a member. No rule is made here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from babel.dates import format_date

from ledger.dashboard import ChannelCount, Dashboard, MonthCount, OpenBonus
from ledger.queries import Referral
from program.cycles import expired
from program.eligibility import TAKEN_BACK_WORDS
from program.referral import Role, Stage
from starter import sharing
from starter.charts import Chart, columns
from starter.sharing import Share

AT_ONCE = 5
"""How many bonuses, and how many channels, are shown before the reader asks for the rest."""

Number = Callable[[int], str]
"""A number as the reader writes it."""


class Tone(StrEnum):
    """How a stage is to be taken; also a class of the style sheet."""

    GOOD = "good"
    WAITING = "waiting"
    BAD = "bad"


_STAGES: Mapping[Stage, tuple[Tone, str]] = {
    Stage.CLICKED: (Tone.WAITING, "Signing up just now"),
    Stage.SIGNED_UP: (Tone.WAITING, "Signed up, waiting for the first payment"),
    Stage.IN_REVIEW: (Tone.WAITING, "Being looked at by our team"),
    Stage.CREDITED: (Tone.GOOD, "You both got {bonus}"),
    Stage.SETTLED: (Tone.GOOD, "You both got {bonus}"),
    Stage.LAPSED: (Tone.BAD, "No signup in time"),
    Stage.REFUSED: (Tone.BAD, "No bonus for this one"),
    Stage.VOIDED: (Tone.BAD, "Ended without a bonus"),
}

_STUCK = (Tone.WAITING, "Paid, and being sorted out by our team")
"""A payment is there, and something has to be mended before it counts."""

_TAKEN_BACK = (Tone.BAD, "The bonus was taken back")

_STUCK_NOTE = "Your friend paid for something that we do not know yet. There is nothing that you need to do."

_REVIEW_NOTE = "A person checks this before anybody gets a bonus. There is nothing that you need to do."

_SOURCES = {
    Role.REFERRER: "For a friend whom you invited",
    Role.REFEREE: "Welcome bonus, for coming by a friend's link",
}


@dataclass(frozen=True, slots=True)
class Friend:
    """One referral, as its referrer sees it. Who the friend is stays out of it.

    Args:
        signed_up_at: UTC.
        tone: how the stage is to be taken.
        stage: in words, with a place for the bonus.
        note: why, or what comes next, where there is something to say (rule 22).
        minutes: of the bonus, where there is one.
        ends_at: until when the member can use it, UTC.
        over: whether that is past.
    """

    signed_up_at: datetime
    tone: Tone
    stage: str
    note: str | None
    minutes: int | None
    ends_at: datetime | None
    over: bool

    def words(self, number: Number) -> str:
        """The stage in words, with numbers as the reader writes them."""
        return self.stage.format(bonus=in_minutes(self.minutes or 0, number, "bonus minute"))


@dataclass(frozen=True, slots=True)
class Bonus:
    """Minutes that can still be used.

    Args:
        minutes: credited.
        remaining: left of them.
        share: how much that is, in percent.
        source: where they came from, in words.
        credited_at: UTC.
        ends_at: until when they can be used, UTC.
    """

    minutes: int
    remaining: int
    share: float
    source: str
    credited_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class Channel:
    """What one way of sharing brought; `share` is how its clicks compare with the most clicked, in percent."""

    name: str
    clicks: int
    signups: int
    share: float


@dataclass(frozen=True, slots=True)
class Month:
    """One month, under its short and its full name."""

    short: str
    name: str
    invited: int
    subscribed: int
    minutes: int


@dataclass(frozen=True, slots=True)
class Sharing:
    """A member's link, and every way to share it."""

    link: str
    copied: str
    shared: str
    ways: tuple[Share, ...]
    title: str = sharing.SUBJECT
    words: str = sharing.WORDS
    disclosure: str = sharing.DISCLOSURE


@dataclass(frozen=True, slots=True)
class PortalView:
    """The dashboard, as the templates show it. Lists that may be long come in two parts."""

    paid: bool
    sharing: Sharing | None
    clicks: int
    invited: int
    subscribed: int
    earned: int
    available: int
    next_end: datetime | None
    bonuses: tuple[Bonus, ...]
    more_bonuses: tuple[Bonus, ...]
    further_bonuses: int
    channels: tuple[Channel, ...]
    more_channels: tuple[Channel, ...]
    months: tuple[Month, ...]
    friends_chart: Chart
    minutes_chart: Chart
    friends: tuple[Friend, ...]
    older: str | None
    newest: bool
    problem: str | None
    version: str


def portal_view(
    dashboard: Dashboard,
    referrals: Iterable[Referral],
    *,
    public_url: str,
    now: datetime,
    older: str | None = None,
    newest: bool = True,
    problem: str | None = None,
) -> PortalView:
    """The dashboard of a member.

    Args:
        dashboard: the numbers.
        referrals: one page of them.
        public_url: where links live.
        now: to tell what is past, UTC.
        older: the cursor of the next page, if there is one.
        newest: whether this is the first page.
        problem: `terms-changed` where the member accepted terms that are no longer in force.
    """
    bonuses = tuple(map(_bonus, dashboard.bonuses))
    most = max((count.clicks for count in dashboard.channels), default=0)
    channels = tuple(_channel(count, most) for count in dashboard.channels)
    months = tuple(map(_month, dashboard.months))
    short = [month.short for month in months]
    return PortalView(
        paid=dashboard.paid,
        sharing=_sharing(public_url, dashboard.code) if dashboard.code else None,
        clicks=dashboard.clicks,
        invited=dashboard.invited,
        subscribed=dashboard.subscribed,
        earned=dashboard.minutes_earned,
        available=dashboard.available,
        next_end=_utc(dashboard.next_expiry) if dashboard.next_expiry else None,
        bonuses=bonuses[:AT_ONCE],
        more_bonuses=bonuses[AT_ONCE:],
        further_bonuses=dashboard.more_bonuses,
        channels=channels[:AT_ONCE],
        more_channels=channels[AT_ONCE:],
        months=months,
        friends_chart=columns(short, [[each.invited for each in months], [each.subscribed for each in months]]),
        # What was taken back may be more than what was earned in a month; a column starts at 0.
        minutes_chart=columns(short, [[max(each.minutes, 0) for each in months]]),
        friends=tuple(_friend(referral, now) for referral in referrals),
        older=older,
        newest=newest,
        problem=problem,
        version=dashboard.version,
    )


def in_minutes(minutes: int, number: Number, word: str = "minute") -> str:
    """A number of minutes in words: `1 minute`, `90 minutes`."""
    return f"{number(minutes)} {word}{'' if minutes == 1 else 's'}"


def _friend(referral: Referral, now: datetime) -> Friend:
    tone, words = _STAGES[referral.stage]
    note: str | None = None
    if referral.stage in (Stage.REFUSED, Stage.VOIDED, Stage.LAPSED):
        note = referral.reason
    elif referral.reason == TAKEN_BACK_WORDS:
        (tone, words), note = _TAKEN_BACK, referral.reason
    elif referral.stage is Stage.IN_REVIEW:
        note = _REVIEW_NOTE
    elif referral.stage is Stage.SIGNED_UP and referral.needs_attention:
        (tone, words), note = _STUCK, _STUCK_NOTE
    ends_at = referral.expires_at.get(Role.REFERRER) if tone is Tone.GOOD else None
    return Friend(
        signed_up_at=_utc(referral.signed_up_at or referral.clicked_at),
        tone=tone,
        stage=words,
        note=note,
        minutes=referral.bonus_minutes if tone is Tone.GOOD else None,
        ends_at=_utc(ends_at) if ends_at else None,
        over=ends_at is not None and expired(ends_at, now),
    )


def _bonus(bonus: OpenBonus) -> Bonus:
    return Bonus(
        minutes=bonus.minutes,
        remaining=bonus.remaining,
        share=_percent(bonus.remaining, bonus.minutes),
        source=_SOURCES[bonus.role],
        credited_at=_utc(bonus.credited_at),
        ends_at=_utc(bonus.expires_at),
    )


def _channel(count: ChannelCount, most: int) -> Channel:
    return Channel(sharing.channel_name(count.channel), count.clicks, count.signups, _percent(count.clicks, most))


def _month(count: MonthCount) -> Month:
    return Month(
        short=format_date(count.month, "LLL", locale="en"),
        name=format_date(count.month, "LLLL y", locale="en"),
        invited=count.invited,
        subscribed=count.subscribed,
        minutes=count.minutes,
    )


def _sharing(public_url: str, code: str) -> Sharing:
    return Sharing(
        link=sharing.link_address(public_url, code),
        copied=sharing.address(public_url, code, "copy"),
        shared=sharing.address(public_url, code, "share"),
        ways=sharing.shares(public_url, code),
    )


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


def _utc(at: datetime) -> datetime:
    return at.astimezone(UTC)
