"""What a member sees costs the same however long the journal is: counted in pages touched, never in time."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
from sqlalchemy import event

from devstack.postgres import EmbeddedPostgres
from ledger import database as clock_of
from ledger import queries, usage
from ledger.database import Transaction
from tests.support import Books, DatabaseUrls, Member

SHORT, LONG = 100, 20_000
PAGE = 20

Read = Callable[[Transaction, str], Awaitable[object]]

# Referrals that are over, each with a bonus that was used in part and then expired: three entries each side.
HISTORY = """
WITH made AS (
    INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until, lapses_at,
        stage, signed_up_at, plan, bonus_minutes, credited_at)
    SELECT %(account)s || '-old-' || n, %(code)s, 'link', %(account)s, %(account)s || '-friend-' || n, at,
        at + '90 days', at + '97 days', 'settled', at, 'pro', 90, at
    FROM generate_series(1, %(lots)s) n, LATERAL (SELECT now() - '60 days'::interval - n * '1 minute'::interval) t (at)
    RETURNING referral_id, credited_at
), lots AS (
    INSERT INTO grant_lot (grant_id, account_id, referral_id, role, minutes, remaining, credited_at, expires_at,
        expired_at)
    SELECT referral_id || '-referrer', %(account)s, referral_id, 'referrer', 90, 0, credited_at,
        credited_at + '30 days', credited_at + '30 days' FROM made
    RETURNING grant_id, account_id, credited_at
)
INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)
SELECT grant_id, account_id, kind, delta, key, credited_at
FROM lots,
    (VALUES ('credit', 90, 'credit'), ('usage', -50, 'usage:old'), ('expiry', -40, 'expiry')) e (kind, delta, key)
"""


def give_history(postgres: EmbeddedPostgres, urls: DatabaseUrls, member: Member, code: str, entries: int) -> None:
    """Let an account have a past; its friends are nobody, so what refers to them is not looked at."""
    name = urls.owner.rpartition("/")[2]
    url = f"{postgres.superuser_url().rpartition('/')[0]}/{name}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(HISTORY, {"code": code, "account": member.account_id, "lots": entries // 3})
        connection.execute("VACUUM (ANALYZE) referral, grant_lot, entry, account, operation")


async def pages_touched(books: Books, member: Member, read: Read) -> int:
    """How many pages the queries of a read touch, wherever they were."""
    plans: list[Any] = []

    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if statement.lstrip().startswith("SELECT"):
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
            plans.append(cursor.fetchone()[0][0]["Plan"])

    async with books.database.transaction() as transaction:
        assert transaction.sync_connection is not None
        event.listen(transaction.sync_connection, "before_cursor_execute", explain)
        await read(transaction, member.account_id)
    assert plans
    return sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans)


async def balance(transaction: Transaction, account_id: str) -> object:
    return await queries.usable(transaction, account_id, await clock_of.now(transaction))


async def summary(transaction: Transaction, account_id: str) -> object:
    return await queries.summary(transaction, account_id)


async def newest_grants(transaction: Transaction, account_id: str) -> object:
    page = await queries.lots(transaction, account_id, PAGE)
    assert len(page.lots) == PAGE
    return page


async def grants_far_down(transaction: Transaction, account_id: str) -> object:
    page = await queries.lots(transaction, account_id, PAGE // 2, (await clock_of.now(transaction), ""))
    page = await queries.lots(transaction, account_id, PAGE // 2, page.next)
    assert len(page.lots) == PAGE // 2
    return page


async def newest_referrals(transaction: Transaction, account_id: str) -> object:
    page = await queries.referrals_of(transaction, account_id, PAGE)
    assert len(page.referrals) == PAGE
    return page


async def spending(transaction: Transaction, account_id: str) -> object:
    used = await usage.spend(transaction, account_id, "call-1", 7)
    assert used.from_bonus == 7
    return used


READS: dict[str, Read] = {
    "balance": balance,
    "summary": summary,
    "newest grants": newest_grants,
    "grants far down": grants_far_down,
    "newest referrals": newest_referrals,
    "use": spending,
}


async def test_rules_12_and_21_what_is_read_does_not_grow_with_the_journal(
    books: Books, postgres: EmbeddedPostgres, database_urls: DatabaseUrls
) -> None:
    touched: dict[str, list[int]] = {name: [] for name in READS}
    referrer = await books.subscriber(started=timedelta(days=1))
    await books.credited(referrer, await books.someone())
    code = (await books.link(referrer)).code
    for entries in (SHORT, LONG):
        member = referrer
        if entries == LONG:
            # Somebody else, beside whom the first one's past is no more than a few rows.
            member = await books.subscriber(started=timedelta(days=1))
            await books.credited(member, await books.someone())
            code = (await books.link(member)).code
        give_history(postgres, database_urls, member, code, entries)
        for name, read in READS.items():
            touched[name].append(await pages_touched(books, member, read))
    for name, (short, long) in touched.items():
        # Two hundred times the entries: each row of a page may lie on a page of its own, and no more is read.
        assert long <= 2 * short + 3 * PAGE, f"{name}: {short} pages with {SHORT} entries, {long} with {LONG}"
