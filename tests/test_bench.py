"""The bench's own arithmetic, and that its sides do the same work: what is compared is the same thing done twice."""

import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.worker import Worker

from activities.referral import LedgerActivities
from bench import bare, raw
from bench.figures import Bound, Row, last_line, measured, percentile, table
from bench.on_dbos import EXECUTOR, SYSTEM_DATABASE
from bench.program import Program, at_once
from bench.rows import clicks, latency, lifecycle, raw_rows, reads, waiting, webhooks
from bench.servers import Process, ready
from devstack.ports import free_port
from ledger.database import Database
from program.plans import Plans
from program.referral import Stage
from program.signals import SignalPolicy
from runtime.settings import PROJECT
from tests.http_support import API_KEYS, STRIPE_SECRETS, environment
from tests.stripe_events import unique
from tests.support import Books, DatabaseUrls

AT_LEAST_TWICE = Row("rate", "ours", "theirs", "a second", Bound.AT_LEAST, 2.0)
AT_MOST_TWICE = Row("latency", "ours", "theirs", "ms", Bound.AT_MOST, 2.0)

REQUIRED = {
    "lifecycle_vs_bare": (Bound.AT_LEAST, 1.0),
    "lifecycle_vs_dbos": (Bound.AT_LEAST, 1.5),
    "credit_latency_vs_bare": (Bound.AT_MOST, 1.4),
    "credit_latency_p99_vs_p50": (Bound.AT_MOST, 3.0),
    "click_vs_bare_start": (Bound.AT_LEAST, 0.9),
    "webhook_vs_noop": (Bound.AT_LEAST, 0.35),
    "worker_cpu_vs_bare": (Bound.AT_MOST, 1.6),
    "history_bytes_vs_bare": (Bound.AT_MOST, 1.5),
    "summary_1m_vs_1k": (Bound.AT_MOST, 1.5),
    "usage_1m_vs_1k": (Bound.AT_MOST, 1.5),
    "due_expiries_1m_vs_1k": (Bound.AT_MOST, 1.5),
    "idle_click_worker_rss": (Bound.AT_MOST, 1.02),
    "wake_2k_vs_bare": (Bound.AT_MOST, 1.2),
}


def test_a_percentile_is_a_value_that_was_measured() -> None:
    samples = [float(value) for value in range(100, 0, -1)]
    assert [percentile(samples, share) for share in (0, 0.5, 0.99, 1)] == [1, 50, 99, 100]
    assert percentile([7.0], 0.99) == 7
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_both_sides_of_a_round_are_compared_with_each_other() -> None:
    """A machine that is slow for some rounds is slow for both sides: the medians alone would say 1, or 10."""
    result = measured(AT_LEAST_TWICE, [(20, 10), (2, 1), (200, 100), (2, 1), (22, 10)])
    assert (result.ratio, result.least, result.most, result.rounds) == (2, 2, 2.2, 5)
    assert (result.ours, result.other) == (20, 10)
    assert result.holds


@pytest.mark.parametrize(
    ("row", "ratio", "holds"),
    [
        (AT_LEAST_TWICE, 2.0, True),
        (AT_LEAST_TWICE, 1.99, False),
        (AT_MOST_TWICE, 2.0, True),
        (AT_MOST_TWICE, 2.01, False),
        (Row("told", "ours", "theirs", "ms"), 1000.0, True),
    ],
)
def test_a_bound_holds_or_not(row: Row, ratio: float, holds: bool) -> None:
    assert measured(row, [(ratio, 1)] * 5).holds is holds


@pytest.mark.parametrize("rounds", [[(1, 1)] * 4, [(1, 1)] * 4 + [(0, 1)], [(1, 1)] * 4 + [(1, float("nan"))]])
def test_what_was_not_measured_often_enough_or_not_at_all_is_no_figure(rounds: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="rate"):
        measured(AT_LEAST_TWICE, rounds)


def test_the_last_line_is_for_programs_and_the_table_for_people() -> None:
    results = [measured(AT_LEAST_TWICE, [(3, 2)] * 5), measured(AT_MOST_TWICE, [(3, 2)] * 5)]
    assert json.loads(last_line(results)) == {"ratios": {"rate": 1.5, "latency": 1.5}}
    assert "\n" not in last_line(results)
    _, rate, late = table(results).splitlines()
    assert "DOES NOT HOLD" in rate
    assert "DOES NOT HOLD" not in late


def test_the_bounds_are_those_that_were_set() -> None:
    modules = (lifecycle, latency, clicks, webhooks, waiting, reads, raw_rows)
    rows = [value for module in modules for value in vars(module).values() if isinstance(value, Row)]
    assert {row.name: (row.bound, row.limit) for row in rows if row.bound} == REQUIRED


@pytest.fixture
async def connection(database_urls: DatabaseUrls) -> AsyncIterator[psycopg.AsyncConnection]:
    url = database_urls.app.replace("+psycopg", "")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        yield connection


async def test_psycopg_alone_writes_the_rows_of_a_credit(
    books: Books, database: Database, plans: Plans, connection: psycopg.AsyncConnection
) -> None:
    """Of each table as many rows as the program's own step writes, and the ledger's own guards find nothing amiss."""

    async def written(referral_id: str) -> list[int]:
        counts = []
        for query in (
            "SELECT count(*) FROM grant_lot WHERE referral_id = %(id)s",
            "SELECT count(*) FROM entry JOIN grant_lot USING (grant_id) WHERE referral_id = %(id)s",
            "SELECT count(*) FROM referral_event WHERE referral_id = %(id)s AND stage = 'credited'",
            "SELECT count(*) FROM outbox WHERE referral_id = %(id)s AND type = 'bonus.credited'",
            "SELECT count(*) FROM referral WHERE referral_id = %(id)s AND credited_at IS NOT NULL",
            "SELECT sum(minutes_earned) + sum(subscribed) FROM account",
        ):
            row = await (await connection.execute(query, {"id": referral_id})).fetchone()
            assert row is not None
            counts.append(int(row[0]))
        return counts

    referrer, friend, another = await books.subscriber(), await books.someone(), await books.someone()
    first = await books.credited(referrer, friend)
    ours = await written(first)
    second = await books.sign_up(referrer, another)
    await raw.credit(connection, second, referrer.account_id, another.account_id)
    theirs = await written(second)
    assert theirs[:-1] == ours[:-1]
    assert theirs[-1] == 2 * ours[-1]
    credit = await LedgerActivities(database, plans, SignalPolicy()).credit_both(second)
    assert credit.stage is Stage.CREDITED


async def test_the_bare_side_takes_one_local_step_and_waits_for_a_timer(dev_server: str) -> None:
    client = await Client.connect(dev_server)
    queue = unique("bare")
    handle = await client.start_workflow(bare.Bare.run, id=queue, task_queue=queue)
    async with Worker(client, task_queue=queue, workflows=[bare.Bare], activities=[bare.nothing]):
        await handle.signal(bare.Bare.tell)
        await handle.signal(bare.Bare.tell)
        kinds = []
        async for event in handle.fetch_history_events(wait_new_event=True):
            kinds.append(event.event_type)
            if event.event_type == EventType.EVENT_TYPE_TIMER_STARTED:
                break
    assert kinds.count(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED) == 2
    assert kinds.count(EventType.EVENT_TYPE_MARKER_RECORDED) == 1
    assert EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED not in kinds
    await handle.terminate()


async def test_the_other_engine_credits_both_sides_once(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """The same calls as to the program, the payment told three times: two grants a referral, and its story is whole."""
    port = free_port()
    settings = environment(database_urls, "nobody's", "127.0.0.1:1", port) | {
        SYSTEM_DATABASE: database_urls.owner,
        EXECUTOR: "executor-of-the-test",
        "PATH": os.environ["PATH"],
    }
    process = Process("on DBOS", [sys.executable, "-m", "bench.on_dbos"], settings, tmp_path / "log", PROJECT)
    try:
        with psycopg.connect(database_urls.owner.replace("+psycopg", ""), autocommit=True) as books:
            process.wait_until(lambda: ready(port, "/healthz"))
            program = Program([port], API_KEYS[0], STRIPE_SECRETS[0], books)
            await program.prepare(2)
            friends = await program.waiting_for_payment(3)
            for _ in range(3):
                await at_once(3, friends, program.pay)
            await program.reach(friends, "credited")
            await program.close()
            stories = books.execute(
                "SELECT array_agg(stage ORDER BY event_id) FROM referral_event GROUP BY referral_id"
            ).fetchall()
            lots = books.execute("SELECT count(*), count(DISTINCT account_id) FROM grant_lot").fetchall()
    finally:
        process.stop()
    assert stories == [(["signed_up", "credited"],)] * 3
    assert lots == [(6, 5)]


def test_every_figure_is_explained() -> None:
    words = Path(PROJECT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert [name for name in REQUIRED if f"`{name}`" not in words] == []
