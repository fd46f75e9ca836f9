"""What is read and shown: referrals, summaries, balances."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, select, tuple_

from ledger import database
from ledger.accounts import UnknownAccountError
from ledger.database import Transaction
from ledger.tables import account, channel_total, entry, grant, referral, referral_event
from program.cycles import expired
from program.referral import Role, Stage


@dataclass(frozen=True, slots=True)
class Referral:
    """A referral with a signup, as it is shown; times are UTC."""

    referral_id: str
    stage: Stage
    reason: str | None
    referrer_account_id: str
    referee_account_id: str
    plan: str | None
    bonus_minutes: int | None
    needs_attention: str | None
    review_reasons: list[str]
    clicked_at: datetime
    signed_up_at: datetime | None
    credited_at: datetime | None
    expires_at: dict[Role, datetime]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a referral's story: the stage that it came to, why, and when (UTC)."""

    stage: Stage
    reason: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Summary:
    """What a member's dashboard shows (rule 12); minutes, times UTC."""

    clicks: int
    invited: int
    subscribed: int
    bonus_minutes_earned: int
    bonus_minutes_available: int
    next_expiry: datetime | None


@dataclass(frozen=True, slots=True)
class Usable:
    """The bonus minutes that can be used, and when the next of them expire (UTC)."""

    minutes: int
    next_expiry: datetime | None


@dataclass(frozen=True, slots=True)
class Lot:
    """One grant, as its owner sees it: minutes credited, left and expired, and its state now (rule 7)."""

    grant_id: str
    referral_id: str
    role: Role
    minutes: int
    remaining: int
    expired: int
    credited_at: datetime
    expires_at: datetime
    state: str


@dataclass(frozen=True, slots=True)
class Page:
    """A page of referrals, and where the next one begins, if there is one."""

    referrals: list[Referral]
    next: tuple[datetime, str] | None


@dataclass(frozen=True, slots=True)
class LotPage:
    """A page of grants, and where the next one begins, if there is one."""

    lots: list[Lot]
    next: tuple[datetime, str] | None


async def _must_exist(transaction: Transaction, account_id: str) -> Row[Any]:
    row = (
        await transaction.execute(
            select(account).where(account.c.account_id == account_id, account.c.erased_at.is_(None))
        )
    ).first()
    if row is None:
        raise UnknownAccountError(account_id)
    return row


async def _shown(transaction: Transaction, rows: Sequence[Row[Any]]) -> list[Referral]:
    ids = [row.referral_id for row in rows]
    lots = await transaction.execute(
        select(grant.c.referral_id, grant.c.role, grant.c.expires_at).where(grant.c.referral_id.in_(ids))
    )
    ends: dict[str, dict[Role, datetime]] = {}
    for referral_id, role, expires_at in lots:
        ends.setdefault(referral_id, {})[Role(role)] = expires_at
    return [
        Referral(
            referral_id=row.referral_id,
            stage=Stage(row.stage),
            reason=row.reason,
            referrer_account_id=row.referrer_id,
            referee_account_id=row.referee_id,
            plan=row.plan,
            bonus_minutes=row.bonus_minutes,
            needs_attention=row.needs_attention,
            review_reasons=list(row.review_reasons),
            clicked_at=row.clicked_at,
            signed_up_at=row.signed_up_at,
            credited_at=row.credited_at,
            expires_at=ends.get(row.referral_id, {}),
        )
        for row in rows
    ]


async def one_referral(transaction: Transaction, referral_id: str) -> Referral | None:
    """The referral of that id, if somebody signed up with it."""
    rows = (await transaction.execute(select(referral).where(referral.c.referral_id == referral_id))).all()
    shown = await _shown(transaction, rows)
    return shown[0] if shown else None


async def story(transaction: Transaction, referral_id: str) -> list[Step]:
    """Every stage that a referral came to, the oldest first."""
    rows = await transaction.execute(
        select(referral_event).where(referral_event.c.referral_id == referral_id).order_by(referral_event.c.event_id)
    )
    return [Step(Stage(row.stage), row.reason, row.at) for row in rows]


async def referrals_of(
    transaction: Transaction, account_id: str, limit: int, after: tuple[datetime, str] | None = None
) -> Page:
    """A page of the signups that a referrer brought, the newest first.

    Raises:
        UnknownAccountError: there is no such account.
    """
    await _must_exist(transaction, account_id)
    query = select(referral).where(referral.c.referrer_id == account_id, referral.c.signed_up_at.is_not(None))
    if after is not None:
        query = query.where(tuple_(referral.c.signed_up_at, referral.c.referral_id) < tuple_(*after))
    query = query.order_by(referral.c.signed_up_at.desc(), referral.c.referral_id.desc()).limit(limit + 1)
    rows = (await transaction.execute(query)).all()
    page = rows[:limit]
    more = (page[-1].signed_up_at, page[-1].referral_id) if len(rows) > limit else None
    return Page(await _shown(transaction, page), more)


async def summary(transaction: Transaction, account_id: str) -> Summary:
    """The numbers of a member's dashboard (rule 12).

    Raises:
        UnknownAccountError: there is no such account.
    """
    member = await _must_exist(transaction, account_id)
    clicks = await transaction.execute(
        select(func.coalesce(func.sum(channel_total.c.clicks), 0)).where(channel_total.c.account_id == account_id)
    )
    moment = await database.now(transaction)
    now_usable = await usable(transaction, account_id, moment)
    return Summary(
        clicks=int(clicks.scalar_one()),
        invited=member.invited,
        subscribed=member.subscribed,
        bonus_minutes_earned=member.minutes_earned,
        bonus_minutes_available=now_usable.minutes,
        next_expiry=now_usable.next_expiry,
    )


def open_grants(account_id: str, moment: ColumnElement[datetime] | datetime) -> tuple[ColumnElement[bool], ...]:
    """The grants of an account that have not ended at a moment, also where a sweep is late (rule 7)."""
    return (grant.c.account_id == account_id, *open_at(moment))


def open_at(moment: ColumnElement[datetime] | datetime) -> tuple[ColumnElement[bool], ...]:
    """The grants of anybody that have not ended at a moment."""
    return (
        grant.c.expired_at.is_(None),
        grant.c.voided_at.is_(None),
        grant.c.expires_at > moment,
    )


def ended_minutes(grant_id: ColumnElement[str] | str, kind: str) -> Select[int]:
    """How many minutes of a grant were left when it came to an end of that kind: `expiry` or `void`."""
    return select(func.coalesce(-func.sum(entry.c.delta), 0)).where(entry.c.grant_id == grant_id, entry.c.kind == kind)


def expired_minutes(grant_id: ColumnElement[str] | str) -> Select[int]:
    """How many minutes of a grant expired unused."""
    return ended_minutes(grant_id, "expiry")


async def usable(transaction: Transaction, account_id: str, moment: datetime) -> Usable:
    """What an account can use at a moment; nothing of a grant that is due, also where its sweep is late (rule 7).

    It takes as long with a hundred thousand grants as with one, but for those that end within this very hour.
    """
    [[now_usable]] = await database.at_once(transaction, (_USABLE, {"account": account_id, "moment": moment}))
    return Usable(int(now_usable.minutes), now_usable.next_expiry)


_USABLE = """
SELECT (SELECT coalesce(sum(remaining), 0) FROM expiry_total
        WHERE account_id = %(account)s AND hour > expiry_hour(%(moment)s))
    + (SELECT coalesce(sum(remaining), 0) FROM grant_lot
        WHERE account_id = %(account)s AND expired_at IS NULL AND voided_at IS NULL AND remaining > 0
            AND expires_at > %(moment)s AND expires_at < expiry_hour(%(moment)s) + interval '1 hour') AS minutes,
    (SELECT min(expires_at) FROM grant_lot
        WHERE account_id = %(account)s AND expired_at IS NULL AND voided_at IS NULL AND remaining > 0
            AND expires_at > %(moment)s) AS next_expiry
"""


async def lots(
    transaction: Transaction, account_id: str, limit: int = 1000, after: tuple[datetime, str] | None = None
) -> LotPage:
    """A page of the grants of an account, the newest first.

    Raises:
        UnknownAccountError: there is no such account.
    """
    await _must_exist(transaction, account_id)
    moment = await database.now(transaction)
    expired_of_each = expired_minutes(grant.c.grant_id).scalar_subquery()
    query = select(grant, expired_of_each.label("expired")).where(grant.c.account_id == account_id)
    if after is not None:
        query = query.where(tuple_(grant.c.credited_at, grant.c.grant_id) < tuple_(*after))
    query = query.order_by(grant.c.credited_at.desc(), grant.c.grant_id.desc()).limit(limit + 1)
    rows = (await transaction.execute(query)).all()
    page = rows[:limit]
    more = (page[-1].credited_at, page[-1].grant_id) if len(rows) > limit else None
    return LotPage([_lot(row, moment) for row in page], more)


def _lot(row: Row[Any], moment: datetime) -> Lot:
    """A lot as it stands at `moment`: one that is due is over, also where its sweep is late (rule 7)."""
    over = expired(row.expires_at, moment)
    late = over and row.expired_at is None and row.voided_at is None
    if row.voided_at is not None:
        state = "void"
    elif over:
        state = "expired"
    else:
        state = "active" if row.remaining else "used"
    return Lot(
        grant_id=row.grant_id,
        referral_id=row.referral_id,
        role=Role(row.role),
        minutes=row.minutes,
        remaining=0 if late else row.remaining,
        expired=row.remaining if late else row.expired,
        credited_at=row.credited_at,
        expires_at=row.expires_at,
        state=state,
    )
