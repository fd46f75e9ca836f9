"""What always holds in the ledger, asked of all of it: each promise by a name, with those that break it."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Select, exists, func, literal_column, select, text

from ledger import database, periods
from ledger.database import Transaction
from ledger.tables import account, customer, entry, grant, outbox, paid_period, referral, stripe_event
from program.notifications import TOO_OLD
from program.payments import UnknownPriceError, first_qualifying_payment
from program.plans import Plans
from program.referral import Stage

LONGEST_QUERY = timedelta(minutes=30)
"""Each question reads a whole table, or several; one that takes longer is ended."""

PAGE = 500
"""How many referrals are looked at by the rules at once."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """Something that always holds.

    Args:
        name: for filters and alerts; never changes.
        meaning: what holds, in a sentence.
        about: what the offenders are: referrals, grants, accounts …
        offenders: finds their ids, each once.
    """

    name: str
    meaning: str
    about: str
    offenders: str


@dataclass(slots=True)
class Finding:
    """What was found of an invariant: how many break it, and the ids of some."""

    name: str
    meaning: str
    about: str
    number: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, offender: str, keep: int) -> None:
        """Count an offender; its id is kept unless `keep` are already."""
        self.number += 1
        if len(self.examples) < keep:
            self.examples.append(offender)


@dataclass(frozen=True, slots=True)
class Patience:
    """How late something may be before it breaks a promise.

    Args:
        late: what the program does by itself, at once.
        untold: what Stripe told, which reconciliation makes up for every hour.
    """

    late: timedelta
    untold: timedelta


@dataclass(frozen=True, slots=True)
class Open:
    """A referral of which something can still become, and for which a run has to be open."""

    referral_id: str
    stage: Stage


INVARIANTS: tuple[Invariant, ...] = (
    Invariant(
        "both-sides-credited",
        "A credited or settled referral has two grants, one for each side, each of that side's account (rule 6).",
        "referrals",
        """SELECT r.referral_id FROM referral r LEFT JOIN grant_lot g ON g.referral_id = r.referral_id
           WHERE r.stage IN ('credited', 'settled') GROUP BY r.referral_id
           HAVING count(g.grant_id) <> 2 OR count(DISTINCT g.role) <> 2 OR NOT bool_and(
               g.account_id = CASE g.role WHEN 'referrer' THEN r.referrer_id ELSE r.referee_id END)""",
    ),
    Invariant(
        "both-sides-equal",
        "The grants of a referral have the same minutes and moment, and they are the referral's (rules 3 and 6).",
        "referrals",
        """SELECT r.referral_id FROM referral r JOIN grant_lot g ON g.referral_id = r.referral_id GROUP BY r.referral_id
           HAVING count(DISTINCT (g.minutes, g.credited_at)) <> 1 OR bool_or(
               g.minutes IS DISTINCT FROM r.bonus_minutes OR g.credited_at IS DISTINCT FROM r.credited_at)""",
    ),
    Invariant(
        "nobody-else-credited",
        "Only a credited or settled referral has grants.",
        "referrals",
        """SELECT DISTINCT g.referral_id FROM grant_lot g LEFT JOIN referral r ON r.referral_id = g.referral_id
           WHERE r.stage IS NULL OR r.stage NOT IN ('credited', 'settled')""",
    ),
    Invariant(
        "friend-credited-once",
        "No account is credited twice as the friend (rule 11).",
        "accounts",
        "SELECT account_id FROM grant_lot WHERE role = 'referee' GROUP BY account_id HAVING count(*) > 1",
    ),
    Invariant(
        "friend-attributed-once",
        "No account belongs to two referrals; refused ones do not count (rule 10).",
        "accounts",
        """SELECT referee_id FROM referral
           WHERE stage IN ('signed_up', 'in_review', 'credited', 'settled', 'voided')
           GROUP BY referee_id HAVING count(*) > 1""",
    ),
    Invariant(
        "nobody-refers-themselves",
        "The two sides of an attributed referral are two accounts (rule 18).",
        "referrals",
        """SELECT referral_id FROM referral
           WHERE referrer_id = referee_id AND stage NOT IN ('clicked', 'lapsed', 'refused')""",
    ),
    Invariant(
        "balance-is-the-journal",
        "What is left of a grant is the sum of its journal, and never below zero or above what was credited.",
        "grants",
        """SELECT g.grant_id FROM grant_lot g
           LEFT JOIN (SELECT grant_id, sum(delta) AS total FROM entry GROUP BY grant_id) j ON j.grant_id = g.grant_id
           WHERE g.remaining <> coalesce(j.total, 0) OR g.remaining < 0 OR g.remaining > g.minutes""",
    ),
    Invariant(
        "journal-is-whole",
        "A grant's journal has one credit, of all its minutes, one end at most, and only its own account's entries.",
        "grants",
        """SELECT g.grant_id FROM grant_lot g LEFT JOIN entry e ON e.grant_id = g.grant_id GROUP BY g.grant_id
           HAVING count(*) FILTER (WHERE e.kind = 'credit') <> 1 OR count(*) FILTER (WHERE e.delta = g.minutes) <> 1
               OR count(*) FILTER (WHERE e.kind IN ('expiry', 'void')) > 1 OR bool_or(e.account_id <> g.account_id)""",
    ),
    Invariant(
        "over-is-empty",
        "An expired or void grant has nothing left, and its journal says how it ended (rules 7 and 20).",
        "grants",
        """SELECT g.grant_id FROM grant_lot g WHERE (g.expired_at IS NOT NULL OR g.voided_at IS NOT NULL) AND (
               g.remaining <> 0 OR NOT EXISTS (SELECT FROM entry e WHERE e.grant_id = g.grant_id
                   AND e.kind = CASE WHEN g.voided_at IS NULL THEN 'expiry' ELSE 'void' END))""",
    ),
    Invariant(
        "nothing-spent-after-the-end",
        "No minute is used of a grant that has expired or is void; the time of recording decides (rules 7 and 21).",
        "grants",
        """SELECT DISTINCT g.grant_id FROM grant_lot g JOIN entry e ON e.grant_id = g.grant_id AND e.kind = 'usage'
           LEFT JOIN operation o ON o.account_id = e.account_id AND 'usage:' || o.usage_id = e.operation_key
           WHERE coalesce(o.at, e.at) >= least(g.expires_at, g.voided_at)""",
    ),
    Invariant(
        "expiry-in-bounds",
        "A grant ends after its credit and within 31 days, and expires no sooner than that (rule 7).",
        "grants",
        """SELECT grant_id FROM grant_lot WHERE expires_at <= credited_at
               OR expires_at > credited_at + interval '744 hours' OR expired_at < expires_at""",
    ),
    Invariant(
        "uses-add-up",
        "What a use took of the bonus is what the journal says of it, and no entry is without its use (rule 21).",
        "uses",
        """SELECT coalesce(o.account_id, u.account_id) || ' ' || coalesce('usage:' || o.usage_id, u.operation_key)
           FROM operation o FULL JOIN (SELECT account_id, operation_key, -sum(delta) AS used FROM entry
               WHERE kind = 'usage' GROUP BY account_id, operation_key) u
               ON u.account_id = o.account_id AND u.operation_key = 'usage:' || o.usage_id
           WHERE coalesce(o.from_bonus, -1) <> coalesce(u.used, 0)""",
    ),
    Invariant(
        "stage-is-in-the-story",
        "A referral's stage is the last one of its story.",
        "referrals",
        """SELECT r.referral_id FROM referral r LEFT JOIN LATERAL (SELECT e.stage FROM referral_event e
               WHERE e.referral_id = r.referral_id ORDER BY e.event_id DESC LIMIT 1) last ON true
           WHERE r.stage <> coalesce(last.stage, 'clicked')""",
    ),
    Invariant(
        "ends-say-why",
        "A referral that ended without a bonus says why (rule 22).",
        "referrals",
        "SELECT referral_id FROM referral WHERE stage IN ('lapsed', 'refused', 'voided') AND coalesce(reason, '') = ''",
    ),
    Invariant(
        "invited-is-counted",
        "An account's count of invited friends is the number of its attributed referrals (rule 12).",
        "accounts",
        """SELECT a.account_id FROM account a LEFT JOIN (SELECT referrer_id, count(*) AS number FROM referral
               WHERE stage IN ('signed_up', 'in_review', 'credited', 'settled', 'voided') GROUP BY referrer_id) c
               ON c.referrer_id = a.account_id WHERE a.invited <> coalesce(c.number, 0)""",
    ),
    Invariant(
        "subscribed-is-counted",
        "An account's count of friends who subscribed is the number of its credited referrals (rule 12).",
        "accounts",
        """SELECT a.account_id FROM account a LEFT JOIN (SELECT referrer_id, count(*) AS number FROM referral
               WHERE credited_at IS NOT NULL GROUP BY referrer_id) c
               ON c.referrer_id = a.account_id WHERE a.subscribed <> coalesce(c.number, 0)""",
    ),
    Invariant(
        "earned-is-counted",
        "An account's minutes earned are those of its grants, less what was voided (rule 12).",
        "accounts",
        """SELECT a.account_id FROM account a
           LEFT JOIN (SELECT account_id, sum(minutes) AS minutes FROM grant_lot GROUP BY account_id) g
               ON g.account_id = a.account_id
           LEFT JOIN (SELECT account_id, -sum(delta) AS minutes FROM entry WHERE kind = 'void' GROUP BY account_id) v
               ON v.account_id = a.account_id
           WHERE a.minutes_earned <> coalesce(g.minutes, 0) - coalesce(v.minutes, 0)""",
    ),
    Invariant(
        "left-is-counted",
        "What is left of an account's grants is counted by the hour in which they end.",
        "accounts",
        """SELECT DISTINCT account_id FROM (
               SELECT account_id FROM (
                   SELECT account_id, hour, remaining FROM expiry_total
                   UNION ALL SELECT account_id, expiry_hour(expires_at), -remaining FROM grant_lot) each
               GROUP BY account_id, hour HAVING sum(remaining) <> 0) amiss""",
    ),
    Invariant(
        "signups-decided",
        "A reported signup is decided at once: its run was told, and a worker took it up (rule 15).",
        "referrals",
        """SELECT referral_id FROM referral WHERE stage = 'clicked'
               AND coalesce(reserved_at, clicked_at) < (SELECT ledger_now()) - :late""",
    ),
    Invariant(
        "events-told",
        "Every run that an event of Stripe's concerns has been told of it.",
        "events",
        """SELECT event_id FROM stripe_event
           WHERE signalled_at IS NULL AND received_at < (SELECT ledger_now()) - :untold""",
    ),
    Invariant(
        "expiries-on-time",
        "A grant that is due is expired at once (rule 7).",
        "grants",
        """SELECT grant_id FROM grant_lot WHERE expired_at IS NULL AND voided_at IS NULL
               AND expires_at < (SELECT ledger_now()) - :late""",
    ),
    Invariant(
        "messages-on-their-way",
        "A message to the backend is taken in hand at once, where there is an endpoint that ever was sent one.",
        "messages",
        """SELECT message_id FROM outbox WHERE due_at < (SELECT ledger_now()) - :late
               AND created_at > (SELECT ledger_now()) - :too_old AND EXISTS (SELECT FROM delivery)""",
    ),
)
"""Everything that one question to the database can tell."""

PAID_IS_CREDITED = Invariant(
    "paid-is-credited",
    "A friend's first real payment for a plan is credited, or the referral says what it waits for (rules 3 and 14).",
    "referrals",
    "",
)
"""This one takes the rules: which payment counts is not the database's to know."""

NAMES = (*(each.name for each in INVARIANTS), PAID_IS_CREDITED.name)

_UNDECIDED = "the signup is not decided"
_NOT_EXPIRED = "a bonus is due and has not expired"
_NOT_CREDITED = "the friend has paid and nobody is credited"

_COUNTED = {
    "accounts": account,
    "referrals": referral,
    "grants": grant,
    "entries": entry,
    "events": stripe_event,
    "messages": outbox,
}


async def begin(transaction: Transaction) -> None:
    """Make a snapshot read-only, and let its questions take their time."""
    await transaction.execute(text("SET TRANSACTION READ ONLY"))
    milliseconds = int(LONGEST_QUERY.total_seconds() * 1000)
    await transaction.execute(select(func.set_config("statement_timeout", str(milliseconds), literal_column("true"))))


async def looked_at(transaction: Transaction) -> dict[str, int]:
    """How many there are of everything that is looked at."""
    return {
        name: (await transaction.execute(select(func.count()).select_from(table))).scalar_one()
        for name, table in _COUNTED.items()
    }


async def check(transaction: Transaction, plans: Plans, patience: Patience, keep: int) -> AsyncIterator[Finding]:
    """Ask everything, of one snapshot that was begun for it; the offenders are streamed, and counted one by one.

    Args:
        transaction: the snapshot.
        plans: the plans on sale.
        patience: how late something may be.
        keep: how many ids are kept of the offenders against each invariant.
    """
    times = {"late": patience.late, "untold": patience.untold, "too_old": TOO_OLD}
    for each in INVARIANTS:
        found = Finding(each.name, each.meaning, each.about)
        needed = {name: value for name, value in times.items() if f":{name}" in each.offenders}
        async with transaction.stream(text(each.offenders), needed) as offenders:
            async for offender in offenders.scalars():
                found.add(offender, keep)
        yield found
    found = Finding(PAID_IS_CREDITED.name, PAID_IS_CREDITED.meaning, PAID_IS_CREDITED.about)
    async for referral_id in _paid_and_waiting(transaction, plans, patience.untold):
        found.add(referral_id, keep)
    yield found


async def behind(transaction: Transaction, plans: Plans, late: timedelta, limit: int) -> dict[str, str]:
    """Referrals for which a run should have done something by now, with what that is; at most `limit`.

    Args:
        transaction: within which.
        plans: the plans on sale.
        late: how long ago it should have been done.
        limit: how many are looked for.
    """
    wanted = {"signups-decided": _UNDECIDED, "expiries-on-time": _NOT_EXPIRED}
    found: dict[str, str] = {}
    for each in INVARIANTS:
        if each.name in wanted:
            offenders = await transaction.execute(
                text(f"{each.offenders} LIMIT :limit"), {"late": late, "limit": limit}
            )
            # The id of a grant is that of its referral and the side.
            found |= {one.partition("-")[0]: wanted[each.name] for one in offenders.scalars()}
    async for referral_id in _paid_and_waiting(transaction, plans, late):
        if len(found) >= limit:
            break
        found[referral_id] = _NOT_CREDITED
    return dict(list(found.items())[:limit])


async def _paid_and_waiting(transaction: Transaction, plans: Plans, untold: timedelta) -> AsyncIterator[str]:
    """Referrals that wait without a word although the friend has paid for a plan some time ago."""
    before = await database.now(transaction) - untold
    last = ""
    while True:
        page = (await transaction.execute(_waiting_and_paid(before, last))).all()
        for row in page:
            payments = await periods.payments_of(transaction, row.referee_id)
            try:
                waits = first_qualifying_payment([one for one in payments if one.paid_at < before], plans) is None
            except UnknownPriceError:
                waits = False
            if not waits:
                yield row.referral_id
        if len(page) < PAGE:
            return
        last = page[-1].referral_id


def _waiting_and_paid(before: datetime, last: str) -> Select[str, str]:
    return (
        select(referral.c.referral_id, referral.c.referee_id)
        .where(
            referral.c.referral_id > last,
            referral.c.stage == Stage.SIGNED_UP,
            referral.c.needs_attention.is_(None),
            referral.c.signed_up_at < before,
            exists().where(
                customer.c.account_id == referral.c.referee_id,
                paid_period.c.customer_id == customer.c.customer_id,
                paid_period.c.amount_paid > 0,
                paid_period.c.paid_at < before,
            ),
        )
        .order_by(referral.c.referral_id)
        .limit(PAGE)
    )


# What a run has to be open for


async def open_referrals(transaction: Transaction, limit: int, after: str = "") -> list[Open]:
    """A page of the attributed referrals that are open, by their ids."""
    rows = await transaction.execute(
        select(referral.c.referral_id, referral.c.stage)
        .where(
            referral.c.referral_id > after,
            referral.c.stage.in_([Stage.SIGNED_UP, Stage.IN_REVIEW, Stage.CREDITED]),
            referral.c.voided_at.is_(None),
        )
        .order_by(referral.c.referral_id)
        .limit(limit)
    )
    return [Open(row.referral_id, Stage(row.stage)) for row in rows]


async def open_among(transaction: Transaction, referral_ids: Iterable[str]) -> dict[str, Stage]:
    """Those of the referrals that are open, attributed or not, with their stages."""
    rows = await transaction.execute(
        select(referral.c.referral_id, referral.c.stage).where(
            referral.c.referral_id.in_(sorted(referral_ids)),
            referral.c.stage.in_([stage for stage in Stage if stage.open]),
            referral.c.voided_at.is_(None),
        )
    )
    return {row.referral_id: Stage(row.stage) for row in rows}
