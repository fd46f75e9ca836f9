"""Nothing lost, nothing twice: a short run under fire, and that the tally behind it finds what is lost or twice."""

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import psycopg
import pytest

from ledger.usage import spend
from program.referral import Role
from runtime.settings import PROJECT
from tests.faults.record import Record
from tests.faults.run import Run, carry_out
from tests.faults.schedule import ALL, SHORT, Kind, schedule
from tests.faults.tally import OUTCOMES, Tally, tally
from tests.support import Books, DatabaseUrls
from tests.test_operators_check import CONSTRAINTS

SEED = 20
STEPS = 2 * len(SHORT) + 3


async def test_nothing_is_lost_and_nothing_happens_twice_under_faults(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(SEED, STEPS, seconds_a_step=0.8, faults=SHORT, every=2, cycle_seconds=12.0, settle_seconds=180.0)

    outcome = await carry_out(run, print)

    said = capsys.readouterr().out
    assert outcome.holds, said
    planned = [(step.number, step.fault.name) for step in run.plan() if step.fault is not None]
    assert {name for _, name in planned} == {fault.name for fault in SHORT}
    assert sorted(outcome.happened + outcome.missed) == planned, said
    # On a machine that does little else every moment comes.
    assert len(outcome.missed) <= 3, said
    assert outcome.tally.counted["stories"] == STEPS
    assert outcome.tally.counted["due lots"] > 0, said


def test_a_seed_repeats_the_schedule() -> None:
    plan = schedule(7, 400)

    assert plan == schedule(7, 400)
    assert plan != schedule(8, 400)
    faults = [step.fault for step in plan if step.fault is not None]
    assert set(faults[: len(ALL)]) == set(ALL), "each comes once before one comes again"
    assert {step.kind for step in plan} == set(Kind)
    assert all(step.kind is step.fault.needs for step in plan if step.fault is not None and step.fault.needs)


def test_the_tally_knows_nothing_of_the_program() -> None:
    tree = ast.parse((PROJECT / "tests" / "faults" / "tally.py").read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names | {"psycopg"}
    assert set(OUTCOMES) == {str(kind) for kind in Kind}, "it has its own word on how each kind of story ends"


DAMAGE = {
    "a side is missing": (
        "DELETE FROM entry WHERE grant_id = :referrers; DELETE FROM grant_lot WHERE grant_id = :referrers",
        "both sides or neither",
    ),
    "nobody is credited": (
        "DELETE FROM entry; DELETE FROM grant_lot; UPDATE referral SET stage = 'signed_up'",
        "was paid for, and nobody is credited",
    ),
    "the sides differ": (
        "UPDATE grant_lot SET credited_at = credited_at - interval '1 second' WHERE grant_id = :referrers",
        "credited at two moments",
    ),
    "too many minutes": (
        "UPDATE grant_lot SET minutes = 91, remaining = remaining + 1 WHERE grant_id = :referrers;"
        "UPDATE entry SET delta = 91 WHERE grant_id = :referrers AND kind = 'credit'",
        "91 minutes for pro",
    ),
    "credited twice": (
        "INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)"
        " SELECT grant_id, account_id, kind, delta, 'again', at FROM entry WHERE kind = 'credit'",
        "was not credited once",
    ),
    "a journal that does not sum": (
        "UPDATE grant_lot SET remaining = remaining - 1 WHERE grant_id = :friends",
        "its journal sums to",
    ),
    "expired twice": (
        "INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)"
        " SELECT grant_id, account_id, 'expiry', 0, key, now() FROM grant_lot, (VALUES ('one'), ('two')) AS v (key)",
        "ended more than once",
    ),
    "due, and not expired": (
        "UPDATE grant_lot SET expires_at = now() - interval '1 minute', credited_at = now() - interval '5 minutes'"
        " WHERE grant_id = :friends",
        "has not expired",
    ),
    "an end that nobody told of": (
        "UPDATE grant_lot SET expires_at = expires_at - interval '1 hour' WHERE grant_id = :friends",
        "which is the end of no cycle",
    ),
    "a use that is gone": ("DELETE FROM operation", "the acknowledged use"),
    "a use that took twice": (
        "INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at)"
        " SELECT grant_id, account_id, kind, delta, operation_key || ' ', at FROM entry WHERE kind = 'usage';"
        "UPDATE entry SET operation_key = 'usage:one' WHERE operation_key = 'usage:one '",
        "took 40 minutes, and 20 were answered",
    ),
    "an end after 31 days instead of the cycle's": (
        "UPDATE grant_lot SET expires_at = credited_at + interval '744 hours' WHERE grant_id = :friends",
        "which is the end of no cycle",
    ),
    "an event that is gone": ("DELETE FROM stripe_event", "is nowhere"),
    "an event of which nobody was told": ("UPDATE stripe_event SET signalled_at = NULL", "nobody was told of it"),
    "a signup that is gone": (
        "DELETE FROM entry; DELETE FROM grant_lot; DELETE FROM referral_event; DELETE FROM outbox;DELETE FROM referral",
        "the acknowledged signup",
    ),
    "a message that is gone": ("DELETE FROM outbox", "0 messages say credited"),
    "a signup of which nobody is told": (
        "DELETE FROM outbox WHERE type = 'referral.signed_up'",
        "0 messages say referral.signed_up",
    ),
}
"""What somebody who may do everything does to the books, and the words by which the tally finds it."""


@pytest.mark.parametrize("damage", DAMAGE)
async def test_the_tally_finds(
    damage: str, books: Books, database_urls: DatabaseUrls, owner: psycopg.Connection, tmp_path: Path
) -> None:
    record, lots = await _credited(books, tmp_path)
    assert _of(record, database_urls).holds, "nothing is wrong yet"

    guarded = [str(table) for (table,) in owner.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    for table in guarded:
        owner.execute(f'ALTER TABLE "{table}" DISABLE TRIGGER USER')
    owner.execute(CONSTRAINTS)
    owner.execute("ALTER TABLE entry DROP CONSTRAINT entry_grant_id_operation_key_key")
    owner.execute("DROP INDEX entry_one_credit; DROP INDEX entry_one_end")
    statements, words = DAMAGE[damage]
    for role in Role:
        statements = statements.replace(f":{'friends' if role is Role.REFEREE else 'referrers'}", f"'{lots[role]}'")
    owner.execute(statements)

    found = _of(record, database_urls)
    assert words in " ".join([*found.wrong, *found.pending]), found


async def test_the_tally_finds_a_message_that_never_arrived(
    books: Books, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    record, _ = await _credited(books, tmp_path)
    lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
    record.write_text("".join(line for line in lines if '"received"' not in line), encoding="utf-8")
    found = _of(record, database_urls)
    assert "has not arrived" in " ".join(found.pending), found


async def test_the_tally_finds_a_void_that_was_acknowledged_and_is_gone(
    books: Books, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    record, _ = await _credited(books, tmp_path)
    [(referral_id,)] = await books.rows("SELECT referral_id FROM referral")
    with record.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"what": "decided", "referral": referral_id, "decision": "void"}) + "\n")

    assert f"the acknowledged void of referral {referral_id} is nowhere" in _of(record, database_urls).wrong


class _Busy(PosixPath):
    """A record to which something is added right after it was read, or only when the books have been read as well."""

    arrives: Callable[[], None]
    moment: str
    reads = 0

    def read_text(self, *args: Any, **kwargs: Any) -> str:
        """What is in it."""
        self.reads += 1
        if (self.reads, self.moment) == (2, "books read"):
            self.arrives()
        lines = str(super().read_text(*args, **kwargs))
        if (self.reads, self.moment) == (1, "record read"):
            self.arrives()
        return lines


@pytest.mark.parametrize("moment", ["record read", "books read"])
async def test_the_tally_is_not_misled_by_what_arrives_while_it_reads(
    moment: str, books: Books, database_urls: DatabaseUrls, owner: psycopg.Connection, tmp_path: Path
) -> None:
    record, _ = await _credited(books, tmp_path)
    late = f"msg_{'1a7e' * 8}"

    def arrives() -> None:
        owner.execute(
            "INSERT INTO outbox (message_id, type, referral_id, account_id, data, created_at, due_at)"
            " SELECT %s, 'bonus.expiring', referral_id, account_id, data, created_at, due_at"
            " FROM outbox WHERE type = 'bonus.credited' LIMIT 1",
            (late,),
        )
        owner.execute(
            "INSERT INTO delivery (message_id, endpoint, state, at) VALUES (%s, 'b', 'delivered', now())", (late,)
        )
        with record.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"what": "received", "message": late, "body": "b"}) + "\n")

    busy = _Busy(record)
    busy.arrives, busy.moment = arrives, moment
    found = _of(busy, database_urls)

    assert found.holds, found
    assert found.counted["messages received"] == found.counted["messages"]


async def _credited(books: Books, folder: Path) -> tuple[Path, dict[Role, str]]:
    """One referral that was credited and used, and what was sent for it, as the load writes it down."""
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.credited(referrer, friend)
    async with books.database.transaction() as transaction:
        used = await spend(transaction, friend.account_id, "one", 20)
    await books.rows("UPDATE stripe_event SET signalled_at = now() RETURNING event_id")
    record = Record(folder / "record.jsonl")
    story: dict[str, Any] = {"story": "s1", "kind": str(Kind.PLAIN), "plan": "pro"}
    record.write("story", **story, referrer=referrer.account_id, friend=friend.account_id)
    record.write("signup", story="s1", referral=referral_id)
    for member in (referrer, friend):
        record.write("account", account=member.account_id)
    for account, end in await books.rows(
        "SELECT account_id, (lines->0->>'end')::timestamptz FROM paid_period JOIN customer USING (customer_id)"
    ):
        record.write("period", account=account, end=int(end.timestamp()))
    for (event,) in await books.rows("SELECT event_id FROM stripe_event"):
        record.write("event sent", event=event)
        record.write("event handled", event=event)
    record.write("usage sent", account=friend.account_id, usage="one")
    taken = {"from_bonus": used.from_bonus, "from_plan": used.from_plan, "available": used.available}
    record.write("usage", account=friend.account_id, usage="one", minutes=20, **taken)
    for (message,) in await books.rows("SELECT message_id FROM outbox"):
        record.write("received", message=message, body="b")
    record.write("finished", story="s1")
    record.close()
    rows = await books.rows("SELECT role, grant_id FROM grant_lot")
    return record.path, {Role(role): str(grant_id) for role, grant_id in rows}


def _of(record: Path, urls: DatabaseUrls) -> Tally:
    return tally(record, urls.owner.replace("+psycopg", ""))
