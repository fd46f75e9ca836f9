"""What docs/capacity.md reckons with: measured on the real ledger, by the rules that it quotes, shown as it is.

`pytest tests/test_capacity.py -s` prints the figures.
"""

import re
from collections import Counter
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql

from bench import capacity
from bench.capacity import MILLION, CloudBill, Load, action_dollars, cloud_bill, markdown
from runtime.settings import PROJECT
from tests.population import plant
from tests.support import Books

FRIENDS = 3000
POINTER = 4
"""What a row takes of its page beside itself, in bytes."""


def test_the_document_shows_the_tables_as_they_are() -> None:
    document = (PROJECT / "docs" / "capacity.md").read_text()
    shown = dict(re.findall(r"<!-- ([a-z-]+) -->\n(.+?)\n<!-- end -->", document, re.DOTALL))
    assert shown == {name: markdown(table()) for name, table in capacity.TABLES.items()}


def test_actions_are_billed_as_the_example_of_temporal_cloud_has_it() -> None:
    assert action_dollars(11.25 * MILLION) == pytest.approx(525)
    assert action_dollars(200 * MILLION) == pytest.approx(250 + 225 + 400 + 1050 + 1500 + 2500)


def test_storage_and_plan_are_billed_as_the_examples_have_it() -> None:
    assert CloudBill(6000, 0, 0).plan == pytest.approx(600)
    assert CloudBill(100, 0, 0).plan == 500
    stored = 720 * capacity.ACTIVE_GBH + 3600 * capacity.RETAINED_GBH
    assert stored == pytest.approx(34.02)
    nobody = cloud_bill(Load(0))  # Its upkeep is within what the plan includes.
    assert (nobody.actions, nobody.active, nobody.retained, nobody.total) == (0, 0, 0, 500)


async def test_what_a_referral_leaves_in_the_ledger(books: Books, owner: psycopg.Connection) -> None:
    referrer = await books.subscriber(started=timedelta(days=1))
    await books.link(referrer)
    friend = await books.someone()
    friend.account_id, friend.email = "7c9e6679-7425-40de-944b-e07fc1f90ae7", "somebody@people.example"
    before = stored(owner)
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    signed_up = stored(owner)
    assert messages(owner) == capacity.MESSAGES_SIGNED_UP
    await books.pay(friend)
    await books.credit(referral_id)
    books.clock.advance(timedelta(days=32))
    await books.expire(referral_id)
    is_about(signed_up, before, capacity.ROWS_SIGNED_UP, capacity.BYTES_SIGNED_UP)
    is_about(stored(owner), before, capacity.ROWS_SETTLED, capacity.BYTES_SETTLED)
    assert messages(owner) == capacity.MESSAGES_SETTLED


async def test_what_indexes_add(books: Books, owner: psycopg.Connection) -> None:
    referrer = await books.subscriber()
    code = (await books.link(referrer)).code
    plant(owner, referrer, code, FRIENDS, now=await books.clock.now(), over=timedelta(days=300))
    whole = within = 0
    for table in ("account", "referral", "referral_event", "grant_lot", "entry"):
        [[rows, size]] = owner.execute(
            sql.SQL("SELECT sum(pg_column_size(t.*) + {}), pg_total_relation_size({}) FROM {} t").format(
                POINTER, sql.Literal(table), sql.Identifier(table)
            )
        ).fetchall()
        print(f"{table:20} {int(rows) // FRIENDS:6} bytes a referral in rows, {size // FRIENDS:6} with indexes")
        whole, within = whole + int(size), within + int(rows)
    print(f"{'all':20} {whole / within:.2f} times")
    assert whole / within == pytest.approx(capacity.WITH_INDEXES, rel=0.15)


def stored(owner: psycopg.Connection) -> dict[str, tuple[int, int]]:
    """How many rows and bytes are in each table."""
    names = owner.execute("SELECT relname FROM pg_stat_user_tables WHERE relname <> 'alembic_version'").fetchall()
    count = sql.SQL("SELECT count(*), coalesce(sum(pg_column_size(t.*) + {}), 0) FROM {} t")
    found = {}
    for [name] in names:
        [[rows, size]] = owner.execute(count.format(POINTER, sql.Identifier(name))).fetchall()
        found[str(name)] = (int(rows), int(size))
    return found


def is_about(after: dict[str, tuple[int, int]], before: dict[str, tuple[int, int]], number: int, size: int) -> None:
    """Hold that what was added is what capacity is reckoned with."""
    added = Counter({name: after[name][0] - before[name][0] for name in after})
    bytes_added = sum(after[name][1] - before[name][1] for name in after)
    print(f"{added.total()} rows, {bytes_added} bytes:", {name: rows for name, rows in added.items() if rows})
    assert added.total() == number
    assert bytes_added == pytest.approx(size, rel=0.1)


def messages(owner: psycopg.Connection) -> int:
    """How many messages to the backend are written."""
    [[number]] = owner.execute("SELECT count(*) FROM outbox").fetchall()
    return int(number)
