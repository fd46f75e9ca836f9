"""How much waits, and for how long: what the metrics say of the ledger at any moment, by its own clock.

Each number is read from an index that holds only what waits, so that a look costs the same with a thousand referrals
and with a million. A count ends at a limit: beyond it, more changes nothing about what has to be done.
"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text

from ledger.database import Transaction
from program.doubts import Doubt
from program.payments import Attention

MOST = 100_000
"""How far is counted."""

LONGEST_LOOK = timedelta(seconds=2)
"""A look that takes longer is given up: metrics keep nobody waiting, least of all the ledger."""

REASONS: tuple[str, ...] = (*(str(doubt) for doubt in Doubt), *(str(reason) for reason in Attention))
"""For what a referral can need attention, in words made for filters."""


@dataclass(frozen=True, slots=True)
class Measures:
    """What waits.

    Args:
        expiry_lag: for how many seconds the bonus that is due the longest has been due.
        signup_lag: for how many seconds the signup that was reported first, and is not decided, has waited.
        in_review: how many referrals are held; nobody is credited until an operator decides.
        in_review_lag: for how many seconds the first of them has been held.
        needs_attention: how many referrals need somebody, by each reason; one may have several.
        messages: how many messages are not delivered to everybody yet.
        message_lag: for how many seconds nobody has taken up the message that is due the longest.
        untold: how many of Stripe's events were applied of which not everybody concerned was told yet.
        untold_lag: for how many seconds the first of them has waited.
        events_lag: how long ago the time is until which reconciliation has read all events; none where it never did.
    """

    expiry_lag: float
    signup_lag: float
    in_review: int
    in_review_lag: float
    needs_attention: dict[str, int]
    messages: int
    message_lag: float
    untold: int
    untold_lag: float
    events_lag: float | None


_LAGS = text(
    """SELECT
        (SELECT min(expires_at) FROM grant_lot WHERE expired_at IS NULL AND voided_at IS NULL) AS expiry,
        (SELECT min(reserved_at) FROM referral WHERE stage = 'clicked') AS signup,
        (SELECT min(due_at) FROM outbox WHERE due_at IS NOT NULL) AS message,
        (SELECT min(received_at) FROM stripe_event WHERE signalled_at IS NULL) AS untold,
        (SELECT read_until FROM stripe_cursor WHERE name = 'events') AS events,
        (SELECT count(*) FROM (SELECT FROM outbox WHERE due_at IS NOT NULL LIMIT :most) few) AS messages,
        (SELECT count(*) FROM (SELECT FROM stripe_event WHERE signalled_at IS NULL LIMIT :most) few) AS untold_events,
        ledger_now() AS now"""
)

_ATTENTION = text(
    """WITH waiting AS MATERIALIZED (
        SELECT referral_id, stage, review_reasons FROM referral
        WHERE stage = 'in_review' OR needs_attention IS NOT NULL OR cardinality(review_reasons) > 0 LIMIT :most)
    SELECT reason, count(*) AS number, NULL::timestamptz AS since
        FROM waiting, unnest(review_reasons) AS reason GROUP BY reason
    UNION ALL
    SELECT NULL, count(*), min((SELECT max(at) FROM referral_event each WHERE each.referral_id = waiting.referral_id))
        FROM waiting WHERE stage = 'in_review'"""
)


async def measures(transaction: Transaction) -> Measures:
    """Look once."""
    await transaction.execute(
        text("SELECT set_config('statement_timeout', :longest, true)"),
        {"longest": f"{LONGEST_LOOK.total_seconds():.0f}s"},
    )
    row = (await transaction.execute(_LAGS, {"most": MOST})).one()
    waiting = (await transaction.execute(_ATTENTION, {"most": MOST})).all()
    held = next(each for each in waiting if each.reason is None)
    numbers = {each.reason: each.number for each in waiting}

    # Of each the first one alone is looked up, due or not: to ask for those that are due would go through all others.
    def seconds(since: object) -> float:
        return 0.0 if since is None else float(max((row.now - since).total_seconds(), 0.0))

    return Measures(
        expiry_lag=seconds(row.expiry),
        signup_lag=seconds(row.signup),
        in_review=held.number,
        in_review_lag=seconds(held.since),
        needs_attention={reason: numbers.get(reason, 0) for reason in REASONS},
        messages=row.messages,
        message_lag=seconds(row.message),
        untold=row.untold_events,
        untold_lag=seconds(row.untold),
        events_lag=None if row.events is None else seconds(row.events),
    )
