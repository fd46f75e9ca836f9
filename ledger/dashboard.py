"""What a member's dashboard shows (rule 12). A look at it costs the same with one referral and with many.

Nothing is locked for it, and nothing counted: the totals are kept by the database in the transactions that change them.
"""

from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import ColumnElement, Text, cast, func, literal, select

from ledger import accounts, database, queries
from ledger.database import Transaction
from ledger.tables import (
    channel_total,
    customer,
    dashboard_version,
    grant,
    ledger_now,
    month_total,
    paid_period,
    seen_period,
    subscription,
)
from program.months import last_months
from program.plans import Plans
from program.referral import Role

BONUSES_SHOWN = 50
"""How many bonuses are named one by one, the soonest to expire first."""


@dataclass(frozen=True, slots=True)
class ChannelCount:
    """What one way of sharing the link brought; signups as rule 12 counts them."""

    channel: str
    clicks: int
    signups: int


@dataclass(frozen=True, slots=True)
class MonthCount:
    """What one month (its first day, UTC) brought: attributed signups, first payments, and minutes in either role.

    A signup counts for the month in which it was made, as long as it is not refused; minutes count for the month in
    which they were credited, less what of them was voided. The sums over all months are the summary's numbers.
    """

    month: date
    invited: int
    subscribed: int
    minutes: int


@dataclass(frozen=True, slots=True)
class OpenBonus:
    """A bonus of which something is left: minutes credited and left, and when it expires (UTC)."""

    grant_id: str
    minutes: int
    remaining: int
    credited_at: datetime
    expires_at: datetime
    role: Role


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A member's dashboard; minutes, times UTC.

    Args:
        paid: whether the member counts as a paid subscriber now (rule 1).
        code: of the member's link, none where there is no link yet.
        clicks: on the link, by people.
        invited: attributed signups (rule 12).
        subscribed: friends who have paid (rule 12).
        minutes_earned: credited in either role, less voided (rule 12).
        available: bonus minutes that can be used now.
        next_expiry: when the next of them expire.
        bonuses: those of which something is left, the soonest to expire first; the first `BONUSES_SHOWN` of them.
        more_bonuses: how many there are besides.
        channels: the ways by which the link was shared, the most signups first, then the most clicks.
        months: the last months, the oldest first, also those in which nothing happened.
        version: changes whenever anything above does, and the member's referrals with it.
    """

    paid: bool
    code: str | None
    clicks: int
    invited: int
    subscribed: int
    minutes_earned: int
    available: int
    next_expiry: datetime | None
    bonuses: tuple[OpenBonus, ...]
    more_bonuses: int
    channels: tuple[ChannelCount, ...]
    months: tuple[MonthCount, ...]
    version: str


async def dashboard(transaction: Transaction, account_id: str, plans: Plans) -> Dashboard:
    """The dashboard of a member, read within a snapshot so that its numbers fit together.

    Raises:
        UnknownAccountError: there is no such account, or it was erased.
    """
    summary = await queries.summary(transaction, account_id)
    moment = await database.now(transaction)
    standing = await accounts.standing_seen(transaction, account_id, plans)
    link = await accounts.link_of(transaction, account_id)
    bonuses = await _bonuses(transaction, account_id, moment)
    return Dashboard(
        paid=standing.paid,
        code=link.code if link else None,
        clicks=summary.clicks,
        invited=summary.invited,
        subscribed=summary.subscribed,
        minutes_earned=summary.bonus_minutes_earned,
        available=summary.bonus_minutes_available,
        next_expiry=summary.next_expiry,
        bonuses=bonuses[:BONUSES_SHOWN],
        more_bonuses=await _more_bonuses(transaction, account_id, moment) if len(bonuses) > BONUSES_SHOWN else 0,
        channels=await _channels(transaction, account_id),
        months=await _months(transaction, account_id, moment),
        version=await _version(transaction, account_id),
    )


def _with_something_left(account_id: str, moment: datetime) -> tuple[ColumnElement[bool], ...]:
    return (*queries.open_grants(account_id, moment), grant.c.remaining > 0)


async def _bonuses(transaction: Transaction, account_id: str, moment: datetime) -> tuple[OpenBonus, ...]:
    """One more than is shown, where there are more."""
    rows = await transaction.execute(
        select(grant)
        .where(*_with_something_left(account_id, moment))
        .order_by(grant.c.expires_at, grant.c.grant_id)
        .limit(BONUSES_SHOWN + 1)
    )
    return tuple(
        OpenBonus(row.grant_id, row.minutes, row.remaining, row.credited_at, row.expires_at, Role(row.role))
        for row in rows
    )


async def _more_bonuses(transaction: Transaction, account_id: str, moment: datetime) -> int:
    number = await transaction.execute(
        select(func.count()).select_from(grant).where(*_with_something_left(account_id, moment))
    )
    return number.scalar_one() - BONUSES_SHOWN


async def _channels(transaction: Transaction, account_id: str) -> tuple[ChannelCount, ...]:
    rows = await transaction.execute(
        select(channel_total.c.channel, channel_total.c.clicks, channel_total.c.signups)
        .where(channel_total.c.account_id == account_id)
        .order_by(channel_total.c.signups.desc(), channel_total.c.clicks.desc(), channel_total.c.channel)
    )
    return tuple(ChannelCount(*row) for row in rows)


async def _months(transaction: Transaction, account_id: str, moment: datetime) -> tuple[MonthCount, ...]:
    months = last_months(moment)
    rows = await transaction.execute(
        select(month_total.c.month, month_total.c.invited, month_total.c.subscribed, month_total.c.minutes).where(
            month_total.c.account_id == account_id, month_total.c.month >= months[0]
        )
    )
    known = {row.month: MonthCount(*row) for row in rows}
    return tuple(known.get(month, MonthCount(month, 0, 0, 0)) for month in months)


async def _version(transaction: Transaction, account_id: str) -> str:
    version: str = (await transaction.execute(select(version_of(literal(account_id))))).scalar_one()
    return version


def version_of(account_id: ColumnElement[str]) -> ColumnElement[str]:
    """What changes whenever something that the dashboard of an account shows does, as an expression over its id.

    A few probes of indexes, however much the account has: the version that the database keeps, the clicks, the next end
    of a bonus (it passes by itself, also where a sweep is late), and the facts that the standing follows from.
    """
    facts_of = customer.c.account_id == account_id
    parts = (
        select(dashboard_version.c.version).where(dashboard_version.c.account_id == account_id),
        select(func.sum(channel_total.c.clicks)).where(channel_total.c.account_id == account_id),
        select(func.min(grant.c.expires_at)).where(grant.c.account_id == account_id, *queries.open_at(ledger_now())),
        select(func.count())
        .select_from(customer)
        .join(paid_period, paid_period.c.customer_id == customer.c.customer_id)
        .where(facts_of),
        select(func.max(seen_period.c.ends_at))
        .select_from(customer)
        .join(seen_period, seen_period.c.customer_id == customer.c.customer_id)
        .where(facts_of),
        select(func.count())
        .select_from(customer)
        .join(subscription, subscription.c.customer_id == customer.c.customer_id)
        .where(facts_of),
    )
    return func.md5(cast(func.row(*(part.scalar_subquery() for part in parts)), Text))
