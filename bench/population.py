"""A ledger with many referrals, written at once: as it would be after a year of a program that does well.

Two of five friends have paid. Everything is spread evenly over the year; a referrer's bonus ends 15 days after its
credit, a friend's 30 days after it. So a star with 100,000 referrals has some 1,600 bonuses that can be used at any
time, among 38,000 that are over. Nothing of it goes through the program, which would take a day; its constraints hold
all the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from bench.servers import Servers
from ledger.migrate import migrate

STAR = "acct-star"
FRIENDS_OF_OTHERS = 9
"""How many referrals any other referrer has."""

_PEOPLE = """
INSERT INTO price (price_id, lookup_key, product_id, seen_at) VALUES ('price_pro', 'pro', 'prod_pro', now());

INSERT INTO account (account_id, email_hash, created_at)
    SELECT 'acct-star', sha256('star'), now() - interval '500 days'
    UNION ALL SELECT 'acct-r' || n, sha256(('r' || n)::bytea), now() - interval '500 days'
        FROM generate_series(0, %(others)s) n
    UNION ALL SELECT 'acct-f' || n, sha256(('f' || n)::bytea), now() - interval '1 year' * n / %(friends)s
        FROM generate_series(1, %(friends)s) n;

INSERT INTO referral_link (code, account_id, created_at)
    SELECT 'c' || substr(md5(account_id), 1, 16), account_id, created_at FROM account WHERE account_id !~ '^acct-f';

INSERT INTO identity (kind, hash, account_id, first_seen_at)
    SELECT 'email', email_hash, account_id, created_at FROM account;
"""

_REFERRALS = """
INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until, lapses_at, stage,
        signed_up_at, plan, bonus_minutes, qualifying_invoice, credited_at, reserved_at)
    SELECT 'ref-' || n, 'c' || substr(md5(referrer), 1, 16), 'email', referrer, 'acct-f' || n,
        at - interval '1 hour', at + interval '90 days', at + interval '97 days',
        CASE WHEN NOT paid THEN 'signed_up' WHEN at < now() - interval '30 days' THEN 'settled' ELSE 'credited' END,
        at, CASE WHEN paid THEN 'pro' END, CASE WHEN paid THEN 90 END, CASE WHEN paid THEN 'in_f' || n END,
        CASE WHEN paid THEN at END, at
    FROM (
        SELECT n, n %% 5 < 2 AS paid,
            now() - interval '1 year' * ((n::bigint * 7919) %% %(friends)s + 1) / %(friends)s AS at,
            CASE WHEN n <= %(star)s THEN 'acct-star' ELSE 'acct-r' || n %% (%(others)s + 1) END AS referrer
        FROM generate_series(1, %(friends)s) n) each;

INSERT INTO referral_event (referral_id, stage, at)
    SELECT referral_id, story.stage, at FROM referral, LATERAL (VALUES
        ('signed_up', signed_up_at), ('credited', credited_at),
        ('settled', CASE WHEN stage = 'settled' THEN credited_at + interval '30 days' END)) story (stage, at)
    WHERE at IS NOT NULL;

INSERT INTO grant_lot (grant_id, account_id, referral_id, role, minutes, remaining, credited_at, expires_at, expired_at)
    SELECT referral_id || '-' || role, account_id, referral_id, role, 90,
        CASE WHEN credited_at + days <= now() THEN 0 ELSE 90 END, credited_at, credited_at + days,
        CASE WHEN credited_at + days <= now() THEN credited_at + days END
    FROM referral, LATERAL (VALUES
        ('referrer', referrer_id, interval '15 days'), ('referee', referee_id, interval '30 days'))
        side (role, account_id, days)
    WHERE credited_at IS NOT NULL;

INSERT INTO customer (customer_id, account_id, linked_at)
    SELECT 'cus_' || substr(account_id, 6), account_id, created_at
    FROM account LEFT JOIN referral ON referee_id = account_id AND credited_at IS NOT NULL
    WHERE account_id !~ '^acct-f' OR referee_id IS NOT NULL;

INSERT INTO paid_period (invoice_id, customer_id, subscription_id, paid_at, amount_paid, total, lines)
    SELECT 'in_' || substr(customer_id, 5), customer_id, 'sub_' || substr(customer_id, 5), linked_at, 2900, 2900,
        jsonb_build_array(jsonb_build_object('price', 'price_pro', 'product', 'prod_pro', 'amount', 2900,
            'proration', false, 'start', linked_at, 'end', linked_at + interval '30 days'))
    FROM customer;
"""

_DUE = """
-- Bonuses of the star's that were over a minute ago, and that nobody has expired yet.
INSERT INTO account (account_id, created_at)
    SELECT 'acct-d' || n, now() - interval '40 days' FROM generate_series(1, %(due)s) n;
INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until, lapses_at, stage,
        signed_up_at, plan, bonus_minutes, qualifying_invoice, credited_at, reserved_at)
    SELECT 'due-' || n, 'c' || substr(md5('acct-star'), 1, 16), 'email', 'acct-star', 'acct-d' || n,
        at, at + interval '90 days', at + interval '97 days', 'credited', at, 'pro', 90, 'in_d' || n, at, at
    FROM generate_series(1, %(due)s) n, LATERAL (SELECT now() - interval '31 days') moment (at);
INSERT INTO grant_lot (grant_id, account_id, referral_id, role, minutes, remaining, credited_at, expires_at)
    SELECT referral_id || '-' || role, account_id, referral_id, role, 90, 90, credited_at,
        credited_at + interval '31 days' - interval '1 minute'
    FROM referral, LATERAL (VALUES ('referrer', referrer_id), ('referee', referee_id)) side (role, account_id)
    WHERE referral_id LIKE 'due-%%';

-- What is used here is one minute at a time, of one bonus that does not come to an end meanwhile.
UPDATE grant_lot SET minutes = 100000, remaining = 100000 WHERE grant_id = (
    SELECT grant_id FROM grant_lot
    WHERE account_id = 'acct-star' AND expired_at IS NULL AND expires_at > now() + interval '1 day'
    ORDER BY expires_at LIMIT 1);
"""

_TOTALS = """
INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)
    SELECT grant_id, account_id, 'credit', minutes, 'credit', credited_at FROM grant_lot
    UNION ALL
    SELECT grant_id, account_id, 'expiry', -minutes, 'expiry', expired_at FROM grant_lot WHERE expired_at IS NOT NULL;

UPDATE account SET invited = counted.invited, subscribed = counted.subscribed FROM (
    SELECT referrer_id, count(*) AS invited, count(credited_at) AS subscribed FROM referral GROUP BY 1) counted
    WHERE account_id = referrer_id;
UPDATE account SET minutes_earned = earned FROM (
    SELECT account_id AS whose, sum(minutes) AS earned FROM grant_lot GROUP BY 1) counted
    WHERE account_id = whose;
INSERT INTO expiry_total (account_id, hour, remaining)
    SELECT account_id, expiry_hour(expires_at), sum(remaining) FROM grant_lot WHERE remaining > 0 GROUP BY 1, 2;
INSERT INTO channel_total (account_id, channel, clicks, signups)
    SELECT account_id, 'email', 3 * invited, invited FROM account WHERE invited > 0;
INSERT INTO month_total (account_id, month, invited, subscribed, minutes)
    SELECT referrer_id, date_trunc('month', signed_up_at AT TIME ZONE 'UTC')::date, count(*), count(credited_at),
        coalesce(sum(bonus_minutes), 0) FROM referral GROUP BY 1, 2;
"""


@dataclass(frozen=True, slots=True)
class Ledger:
    """A database with so many referrals in it."""

    name: str
    referrals: int
    app_url: str


@contextmanager
def ledger(servers: Servers, name: str, referrals: int, star: int, due: int = 0) -> Iterator[Ledger]:
    """A database of its own, which is dropped in the end.

    Args:
        servers: where.
        name: of the database.
        referrals: in all.
        star: how many of them are one referrer's.
        due: further ones of that referrer's, both of whose bonuses are due.
    """
    servers.postgres.create_database(name)
    migrate(f"{servers.database_url(owner=True).rpartition('/')[0]}/{name}")
    sizes = {"friends": referrals, "star": star, "others": (referrals - star) // FRIENDS_OF_OTHERS, "due": due}
    with psycopg.connect(servers.postgres.superuser_url(name), autocommit=True) as connection:
        # As one who restores a dump: what is written here is whole, and is not looked at row by row.
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET work_mem = '256MB'")
        for statements in (_PEOPLE, _REFERRALS, _DUE, _TOTALS):
            script = psycopg.ClientCursor(connection).mogrify(statements, sizes)
            for statement in filter(str.strip, script.split(";\n")):
                connection.execute(statement.encode())
            connection.execute("ANALYZE")
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")
    try:
        yield Ledger(name, referrals, f"{servers.database_url().rpartition('/')[0]}/{name}")
    finally:
        with psycopg.connect(servers.postgres.superuser_url(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
