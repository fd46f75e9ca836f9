"""The rows of a credit, written by psycopg alone: what PostgreSQL takes for them, whoever decides."""

import json
import secrets
from datetime import UTC, datetime, timedelta

import psycopg

_GRANTS = """
INSERT INTO grant_lot (grant_id, account_id, referral_id, role, minutes, remaining, credited_at, expires_at)
VALUES (%(id)s || '-referrer', %(referrer)s, %(id)s, 'referrer', 90, 90, %(at)s, %(end)s),
    (%(id)s || '-referee', %(referee)s, %(id)s, 'referee', 90, 90, %(at)s, %(end)s)
"""
_ENTRIES = """
INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)
VALUES (%(id)s || '-referrer', %(referrer)s, 'credit', 90, 'credit', %(at)s),
    (%(id)s || '-referee', %(referee)s, 'credit', 90, 'credit', %(at)s)
"""
_ACCOUNTS = """
UPDATE account SET minutes_earned = minutes_earned + 90,
    subscribed = subscribed + (account_id = %(referrer)s)::integer
WHERE account_id IN (%(referrer)s, %(referee)s)
"""
_REFERRAL = """
UPDATE referral SET stage = 'credited', plan = 'pro', bonus_minutes = 90, credited_at = %(at)s, review_reasons = '{}',
    qualifying_invoice = %(invoice)s
WHERE referral_id = %(id)s
"""
_EVENT = "INSERT INTO referral_event (referral_id, stage, at) VALUES (%(id)s, 'credited', %(at)s)"
_OUTBOX = """
INSERT INTO outbox (message_id, type, referral_id, account_id, data, created_at, due_at)
VALUES (%(one)s, 'bonus.credited', %(id)s, %(referrer)s, %(data)s, %(at)s, %(end)s),
    (%(two)s, 'bonus.credited', %(id)s, %(referee)s, %(data)s, %(at)s, %(end)s)
"""


async def credit(connection: psycopg.AsyncConnection, referral_id: str, referrer: str, referee: str) -> None:
    """Write everything that a credit writes, in one transaction and one journey to the server and back."""
    at = datetime.now(UTC)
    values = {
        "id": referral_id,
        "referrer": referrer,
        "referee": referee,
        "invoice": f"in_{referral_id}",
        "at": at,
        "end": at + timedelta(days=30),
        "one": f"msg_{secrets.token_hex(16)}",
        "two": f"msg_{secrets.token_hex(16)}",
        "data": json.dumps({"referral_id": referral_id, "minutes": 90, "plan": "pro", "remaining": 90}),
    }
    async with connection.pipeline(), connection.transaction():
        for statement in (_GRANTS, _ENTRIES, _ACCOUNTS, _REFERRAL, _EVENT, _OUTBOX):
            await connection.execute(statement.encode(), values)
