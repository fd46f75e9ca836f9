"""A past for a member: many friends at once, stored as the program would have stored them."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg

from program.doubts import Doubt
from program.eligibility import Refusal
from tests.support import Member

CHANNELS = ("whatsapp", "copy", "whatsapp", "sms", "email", "whatsapp", "qr", "x", "share", "linkedin")

_CROWD = """
CREATE TEMP TABLE crowd ON COMMIT DROP AS
SELECT n, left(md5(%(account)s || n), 24) AS referral_id, %(account)s || '-friend-' || n AS friend_id,
    (%(channels)s::text[])[1 + n %% cardinality(%(channels)s::text[])] AS channel,
    at AS signed_up_at, at - interval '3 hours' AS clicked_at, at + interval '1 day' AS credited_at,
    CASE n %% 10 WHEN 3 THEN 'refused' WHEN 6 THEN 'in_review' WHEN 8 THEN 'signed_up' ELSE
        CASE WHEN at > %(now)s - interval '2 days' THEN 'signed_up'
            WHEN at > %(now)s - interval '30 days' THEN 'credited'
            -- So that nothing is about to end while a test looks at it.
            WHEN at > %(now)s - interval '31 days' THEN 'signed_up' ELSE 'settled' END
    END AS stage,
    CASE n %% 4 WHEN 1 THEN 'starter' WHEN 2 THEN 'power' ELSE 'pro' END AS plan,
    CASE n %% 4 WHEN 1 THEN 22 WHEN 2 THEN 300 ELSE 90 END AS minutes
FROM generate_series(1, %(number)s) n,
    LATERAL (SELECT %(now)s - interval '5 hours' - %(over)s * power((n - 1)::float / %(number)s, 1.6)) t (at)
"""

_STORED = (
    "INSERT INTO account (account_id, created_at) SELECT friend_id, signed_up_at FROM crowd",
    """
    INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until, lapses_at,
        stage, signed_up_at, reason, refusal, review_reasons, plan, bonus_minutes, credited_at, qualifying_invoice)
    SELECT referral_id, %(code)s, channel, %(account)s, friend_id, clicked_at, clicked_at + interval '90 days',
        clicked_at + interval '97 days', stage, signed_up_at,
        CASE stage WHEN 'refused' THEN %(words)s WHEN 'in_review' THEN %(doubt)s END,
        CASE stage WHEN 'refused' THEN %(refusal)s END,
        CASE stage WHEN 'in_review' THEN ARRAY['same-card'] ELSE '{}' END,
        CASE WHEN stage IN ('credited', 'settled') THEN plan END,
        CASE WHEN stage IN ('credited', 'settled') THEN minutes END,
        CASE WHEN stage IN ('credited', 'settled') THEN credited_at END,
        CASE WHEN stage IN ('in_review', 'credited', 'settled') THEN 'in_' || referral_id END
    FROM crowd
    """,
    """
    INSERT INTO referral_event (referral_id, stage, reason, at)
    SELECT referral_id, each, CASE each WHEN 'refused' THEN %(words)s WHEN 'in_review' THEN %(doubt)s END, at
    FROM crowd, LATERAL (VALUES ('signed_up', signed_up_at), ('refused', signed_up_at), ('in_review', credited_at),
        ('credited', credited_at), ('settled', credited_at + interval '30 days')) e (each, at)
    WHERE each = stage OR (each = 'signed_up' AND stage <> 'refused') OR (each = 'credited' AND stage = 'settled')
    ORDER BY at
    """,
    """
    INSERT INTO grant_lot (grant_id, account_id, referral_id, role, minutes, remaining, credited_at, expires_at,
        expired_at)
    SELECT referral_id || '-' || role, owner, referral_id, role, minutes,
        CASE stage WHEN 'credited' THEN minutes ELSE 0 END, credited_at, credited_at + interval '30 days',
        CASE stage WHEN 'settled' THEN credited_at + interval '30 days' END
    FROM crowd, LATERAL (VALUES ('referrer', %(account)s), ('referee', friend_id)) side (role, owner)
    WHERE stage IN ('credited', 'settled')
    """,
    """
    INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)
    SELECT referral_id || '-' || role, owner, kind, sign * minutes, kind, credited_at + after
    FROM crowd, LATERAL (VALUES ('referrer', %(account)s), ('referee', friend_id)) side (role, owner),
        (VALUES ('credit', 1, interval '0'), ('expiry', -1, interval '30 days')) e (kind, sign, after)
    WHERE stage = 'settled' OR (stage = 'credited' AND kind = 'credit')
    """,
    """
    INSERT INTO click_count (code, channel, day, clicks)
    SELECT %(code)s, channel, clicked_at::date, count(*) * 3 + max(n) %% 4 FROM crowd GROUP BY 2, 3
    ON CONFLICT (code, channel, day) DO UPDATE SET clicks = click_count.clicks + excluded.clicks
    """,
    """
    UPDATE account SET invited = account.invited + past.invited, subscribed = account.subscribed + past.subscribed,
        minutes_earned = account.minutes_earned + past.minutes
    FROM (SELECT count(*) FILTER (WHERE stage <> 'refused') AS invited,
            count(*) FILTER (WHERE stage IN ('credited', 'settled')) AS subscribed,
            coalesce(sum(minutes) FILTER (WHERE stage IN ('credited', 'settled')), 0) AS minutes FROM crowd) past
    WHERE account_id = %(account)s
    """,
)


@dataclass(frozen=True, slots=True)
class Past:
    """What a member's past came to, counted apart from the program's own counting."""

    invited: int
    subscribed: int
    earned: int
    available: int


def plant(owner: psycopg.Connection, member: Member, code: str, number: int, *, now: datetime, over: timedelta) -> Past:
    """Give a member with a link that many friends, who signed up within `over` until `now`, the most of them lately.

    Of ten, seven have paid (if there was time for it), one is looked at, one refused, and one has only signed up.
    """
    values = {
        "account": member.account_id,
        "code": code,
        "number": number,
        "now": now,
        "over": over,
        "channels": list(CHANNELS),
        "refusal": Refusal.EXISTING_ACCOUNT.value,
        "doubt": Doubt.SAME_CARD.words,
        "words": Refusal.EXISTING_ACCOUNT.words,
    }
    with owner.transaction():
        for statement in (_CROWD, *_STORED):
            owner.execute(statement, values)
        row = owner.execute(
            """
            SELECT count(*) FILTER (WHERE stage <> 'refused'),
                count(*) FILTER (WHERE stage IN ('credited', 'settled')),
                coalesce(sum(minutes) FILTER (WHERE stage IN ('credited', 'settled')), 0),
                coalesce(sum(minutes) FILTER (WHERE stage = 'credited'), 0)
            FROM crowd
            """
        ).fetchone()
    assert row is not None
    return Past(*map(int, row))
