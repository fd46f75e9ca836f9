"""`referrals check`: what always holds, and that each kind of damage is found by its name."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from cli.check import OPEN_HAVE_RUNS, RUNS_ARE_OPEN
from ledger import invariants
from ledger.database import Database
from ledger.invariants import NAMES, Patience
from ledger.usage import spend
from program.doubts import Action
from program.plans import Plans
from program.referral import Stage
from runtime.temporal import set_up_namespace
from tests.conftest import BIN
from tests.operator_support import Operator, operator_of
from tests.stripe_events import unique
from tests.support import Books, Clock, DatabaseUrls, World
from workflows.payloads import DATA_CONVERTER

DAY = timedelta(days=1)
PATIENCE = Patience(late=timedelta(minutes=15), untold=timedelta(minutes=90))

DAMAGE: dict[str, tuple[str, set[str]]] = {
    "both-sides-credited": (
        "DELETE FROM entry WHERE grant_id = :credited || '-referrer';"
        "DELETE FROM grant_lot WHERE grant_id = :credited || '-referrer'",
        {"earned-is-counted", "left-is-counted"},
    ),
    "both-sides-equal": (
        "UPDATE grant_lot SET credited_at = credited_at - interval '1 minute' WHERE grant_id = :credited || '-referee'",
        set(),
    ),
    "nobody-else-credited": (
        "UPDATE referral SET stage = 'voided', reason = 'x' WHERE referral_id = :credited;"
        "INSERT INTO referral_event (referral_id, stage, at) VALUES (:credited, 'voided', ledger_now())",
        set(),
    ),
    "friend-credited-once": (
        "DROP INDEX grant_lot_once_a_referee;UPDATE grant_lot SET account_id = :friend WHERE role = 'referee'",
        {"both-sides-credited", "journal-is-whole", "earned-is-counted"},
    ),
    "friend-attributed-once": (
        "DROP INDEX referral_attributed_once;UPDATE referral SET referee_id = :friend WHERE referral_id = :waiting",
        set(),
    ),
    "nobody-refers-themselves": (
        "UPDATE referral SET referee_id = referrer_id WHERE referral_id = :waiting",
        set(),
    ),
    "balance-is-the-journal": (
        "UPDATE grant_lot SET remaining = remaining - 1 WHERE grant_id = :credited || '-referee'",
        {"left-is-counted"},
    ),
    "journal-is-whole": (
        "UPDATE entry SET delta = delta - 1 WHERE kind = 'credit' AND grant_id = :credited || '-referee';"
        "UPDATE grant_lot SET remaining = remaining - 1 WHERE grant_id = :credited || '-referee'",
        {"left-is-counted"},
    ),
    "over-is-empty": (
        "UPDATE grant_lot SET voided_at = ledger_now(), remaining = 0 WHERE grant_id = :credited || '-referee';"
        "INSERT INTO entry (grant_id, account_id, kind, delta, operation_key, at) SELECT grant_id, account_id,"
        " 'expiry', -70, 'expiry', ledger_now() FROM grant_lot WHERE grant_id = :credited || '-referee'",
        {"left-is-counted"},
    ),
    "nothing-spent-after-the-end": (
        "UPDATE operation SET at = (SELECT max(expires_at) FROM grant_lot)",
        set(),
    ),
    "expiry-in-bounds": (
        "UPDATE grant_lot SET expires_at = credited_at + interval '32 days' WHERE grant_id = :credited || '-referee'",
        {"left-is-counted"},
    ),
    "uses-add-up": ("UPDATE operation SET from_bonus = from_bonus - 1", set()),
    "stage-is-in-the-story": (
        "UPDATE referral SET stage = 'clicked', reserved_at = ledger_now() WHERE referral_id = :waiting",
        {"invited-is-counted"},
    ),
    "ends-say-why": ("UPDATE referral SET reason = NULL WHERE stage = 'refused'", set()),
    "invited-is-counted": ("UPDATE account SET invited = invited + 1 WHERE account_id = :referrer", set()),
    "subscribed-is-counted": ("UPDATE account SET subscribed = 0 WHERE account_id = :referrer", set()),
    "earned-is-counted": ("UPDATE account SET minutes_earned = 1 WHERE account_id = :friend", set()),
    "left-is-counted": ("UPDATE expiry_total SET remaining = remaining + 1 WHERE account_id = :friend", set()),
    "signups-decided": (
        "UPDATE referral SET reserved_at = ledger_now() - interval '20 minutes' WHERE stage = 'clicked'",
        set(),
    ),
    "events-told": (
        "UPDATE stripe_event SET signalled_at = NULL, received_at = ledger_now() - interval '2 hours'",
        set(),
    ),
    "expiries-on-time": (
        "UPDATE grant_lot SET expires_at = ledger_now() - interval '20 minutes',"
        " credited_at = ledger_now() - interval '9 days' WHERE referral_id = :credited;"
        "UPDATE referral SET credited_at = (SELECT max(credited_at) FROM grant_lot WHERE referral_id = :credited)"
        " WHERE referral_id = :credited;"
        "UPDATE grant_lot SET credited_at = (SELECT credited_at FROM referral WHERE referral_id = :credited)"
        " WHERE referral_id = :credited;"
        "UPDATE operation SET at = at - interval '1 day'",
        {"left-is-counted"},
    ),
    "messages-on-their-way": (
        "INSERT INTO delivery SELECT message_id, 'crm', 'delivered', NULL, ledger_now() FROM outbox LIMIT 1;"
        "UPDATE outbox SET due_at = ledger_now() - interval '20 minutes'",
        set(),
    ),
    "paid-is-credited": (
        "UPDATE customer SET account_id = :waiting_friend WHERE account_id = :friend;"
        "UPDATE paid_period SET paid_at = ledger_now() - interval '2 hours';"
        "UPDATE referral SET signed_up_at = ledger_now() - interval '3 hours' WHERE referral_id = :waiting",
        set(),
    ),
}
"""For each invariant what an owner of the database does to break it, and which others break with it."""

CONSTRAINTS = """
    ALTER TABLE grant_lot DISABLE TRIGGER USER; ALTER TABLE entry DISABLE TRIGGER USER;
    ALTER TABLE operation DISABLE TRIGGER USER;
    DO $$ DECLARE each record; BEGIN
        FOR each IN SELECT conrelid::regclass AS of, conname FROM pg_constraint
            WHERE contype = 'c' AND connamespace = 'public'::regnamespace
        LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', each.of, each.conname); END LOOP;
    END $$;
"""
"""What guards the ledger from such things, taken away."""


@pytest.fixture
def books(database: Database, plans: Plans, clock: Clock) -> Books:
    return Books(database, plans, clock)


@pytest.fixture
async def as_owner(database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    database = Database(database_urls.owner, pool_size=1)
    yield database
    await database.close()


async def every_kind(books: Books) -> dict[str, str]:
    """A ledger with a referral of every kind; the ids of some of what is in it."""
    referrer, friend, another, waiting = [await books.subscriber(started=DAY), *[await books.someone() for _ in "123"]]
    credited = await books.credited(referrer, friend)
    other = await books.credited(referrer, another, plan="starter")
    async with books.database.transaction() as transaction:
        await spend(transaction, friend.account_id, "call-1", 20)
    await books.decide(other, Action.VOID)
    waits = await books.sign_up(referrer, waiting)
    await books.held(await books.subscriber(), await books.someone())
    await books.sign_up(referrer, await books.someone(age=9 * DAY))
    await books.reserve(await books.click(referrer), referrer, await books.someone())
    erased = await books.someone()
    await books.credited(referrer, erased)
    await books.erase(erased)
    voided = await books.sign_up(referrer, await books.someone())
    await books.decide(voided, Action.VOID)
    return {
        "credited": credited,
        "waiting": waits,
        "referrer": referrer.account_id,
        "friend": friend.account_id,
        "waiting_friend": waiting.account_id,
    }


class _UndoneError(Exception):
    """Whatever was done is undone."""


def test_there_is_damage_for_every_invariant() -> None:
    assert tuple(DAMAGE) == NAMES


async def test_each_kind_of_damage_is_found_by_its_name(books: Books, as_owner: Database, plans: Plans) -> None:
    ids = await every_kind(books)

    async def broken(damage: str) -> set[str]:
        found: set[str] = set()
        try:
            async with as_owner.transaction() as transaction:
                if damage:
                    await transaction.execute(text(CONSTRAINTS))
                for statement in damage.split(";"):
                    if statement:
                        named = {name: value for name, value in ids.items() if f":{name}" in statement}
                        changed = await transaction.execute(text(statement), named)
                        assert changed.rowcount != 0, f"nothing was damaged: {statement}"
                async for finding in invariants.check(transaction, plans, PATIENCE, 5):
                    found |= {finding.name} if finding.number else set()
                    assert bool(finding.examples) is bool(finding.number)
                raise _UndoneError
        except _UndoneError:
            return found

    assert await broken("") == set()
    found = {name: await broken(damage) for name, (damage, _) in DAMAGE.items()}
    assert found == {name: {name} | others for name, (_, others) in DAMAGE.items()}


async def test_more_offenders_are_counted_than_named(books: Books, as_owner: Database, plans: Plans) -> None:
    await every_kind(books)
    async with as_owner.transaction() as transaction:
        await transaction.execute(text("UPDATE account SET invited = invited + 7"))
        number = (await transaction.execute(text("SELECT count(*) FROM account"))).scalar_one()
        found = {each.name: each async for each in invariants.check(transaction, plans, PATIENCE, 2)}

    assert found["invited-is-counted"].number == number > 2
    assert len(found["invited-is-counted"].examples) == 2


# With the runs


@pytest.fixture
async def own_world(database: Database, plans: Plans, dev_server: str, clock: Clock) -> AsyncIterator[World]:
    """The program in a namespace of the test's own, for all of one is looked at; with a worker."""
    client = await Client.connect(dev_server, namespace=unique("check"), data_converter=DATA_CONVERTER)
    await set_up_namespace(client)
    world = World(database, plans, WorkflowEnvironment.from_client(client), clock, unique("queue"))
    async with world.worker():
        yield world


@pytest.fixture
def operator(own_world: World, database_urls: DatabaseUrls) -> Operator:
    return operator_of(own_world, database_urls)


async def signed_up(world: World) -> str:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    await world.sign_up(click, referrer, await world.member("friend"))
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    return click.referral_id


async def shell(operator: Operator, *arguments: str) -> None:
    """Temporal's own command, as the runbook has it."""
    process = await asyncio.create_subprocess_exec(
        BIN / "temporal", *arguments, "--reason", "ended by mistake", env={**os.environ, **operator.environment}
    )
    assert await process.wait() == 0


def broken_of(document: Any) -> dict[str, list[str]]:
    return {each["name"]: each["examples"] for each in document["findings"] if each["number"]}


async def test_the_runs_are_held_against_the_ledger(
    own_world: World, operator: Operator, owner: psycopg.Connection
) -> None:
    fine, lost, ahead = [await signed_up(own_world) for _ in "123"]
    await own_world.click(await own_world.subscriber())

    whole = await operator.answer("check")
    await own_world.handle(lost).terminate("by mistake")
    owner.execute(
        "UPDATE referral SET stage = 'voided', reason = 'x', voided_at = now() WHERE referral_id = %s", [ahead]
    )
    owner.execute("INSERT INTO referral_event (referral_id, stage, at) VALUES (%s, 'voided', now())", [ahead])
    document, text_, ledger_only, away = await asyncio.gather(
        operator.answer("check", status=1),
        operator.says("check"),
        operator.answer("check", "--ledger-only", TEMPORAL_ADDRESS="127.0.0.1:1"),
        operator.says("check", "--json", REFERRALS_DATABASE_URL="postgresql://app@127.0.0.1:1/nowhere"),
    )

    assert whole["holds"] is True
    assert [each["name"] for each in whole["findings"]] == [*NAMES, OPEN_HAVE_RUNS[0], RUNS_ARE_OPEN[0]]
    assert all(each["meaning"].endswith(".") for each in whole["findings"])
    assert (whole["looked_at"]["referrals"], whole["looked_at"]["open referrals"]) == (3, 3)
    assert broken_of(document) == {OPEN_HAVE_RUNS[0]: [lost], RUNS_ARE_OPEN[0]: [ahead]}
    assert fine not in text_.out
    assert (text_.status, lost in text_.out, "broken" in text_.out) == (1, True, True)
    await shell(operator, "workflow", "reset", "--workflow-id", f"referral-{lost}", "--type", "LastWorkflowTask")
    mended = await operator.answer("check", status=1)

    assert broken_of(mended) == {RUNS_ARE_OPEN[0]: [ahead]}
    assert ledger_only["holds"] is True
    assert (away.status, away.out) == (2, "")
    assert away.err.startswith("referrals: the database: ")
