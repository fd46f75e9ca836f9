"""`referrals replay` and `referrals doctor`: what is looked at before a deploy, and where something does not work."""

import asyncio
import re
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from temporalio import workflow
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from devstack.postgres import EmbeddedPostgres
from ledger.database import Database
from ledger.migrate import migrate, newest_version
from program.plans import Plans
from program.referral import Stage
from runtime.schedules import set_up_schedules
from runtime.temporal import set_up_namespace
from tests.http_support import environment
from tests.operator_support import Operator, operator_of
from tests.stripe_events import unique
from tests.support import Clock, DatabaseUrls, World, copied_database, run_start, until
from workflows import messages
from workflows.jobs import JOBS, upkeep_queue
from workflows.messages import ReferralStart
from workflows.payloads import DATA_CONVERTER


@pytest.fixture
async def own_world(database: Database, plans: Plans, dev_server: str, clock: Clock) -> World:
    """The program in a namespace of the test's own; no worker runs."""
    client = await Client.connect(dev_server, namespace=unique("replay"), data_converter=DATA_CONVERTER)
    await set_up_namespace(client)
    return World(database, plans, WorkflowEnvironment.from_client(client), clock, unique("queue"))


@pytest.fixture
def operator(own_world: World, database_urls: DatabaseUrls) -> Operator:
    return operator_of(own_world, database_urls)


@workflow.defn(name=messages.WORKFLOW, sandboxed=False)
class Another:
    """Something of the same name that goes another way."""

    @workflow.run
    async def run(self, _: ReferralStart) -> None:
        workflow.upsert_search_attributes([messages.REFERRAL_STAGE.value_set(Stage.SIGNED_UP)])
        await workflow.sleep(timedelta(days=1))


async def listed(client: Client, query: str, number: int) -> None:
    """Wait until Temporal's list has so many."""

    async def count() -> int:
        return (await client.count_workflows(query)).count

    await until(count, lambda found: found == number)


async def test_the_code_goes_on_with_its_own_histories_and_not_with_another_s(
    own_world: World, operator: Operator
) -> None:
    world, client = own_world, own_world.environment.client
    referrer = await world.subscriber()
    async with world.worker():
        clicks = [await world.click(referrer) for _ in "1234"]
        for click in clicks[:2]:
            await world.sign_up(click, referrer, await world.member("friend"))
            await world.reaches(click.referral_id, Stage.SIGNED_UP)
        await world.void(f"referral-{clicks[0].referral_id}")
        await world.handle(clicks[0].referral_id).result()
    await listed(client, "ReferralStage = 'voided' AND ExecutionStatus = 'Completed'", 1)
    await listed(client, "ReferralStage = 'signed_up' AND ExecutionStatus = 'Running'", 1)
    await listed(client, "ReferralStage = 'clicked' AND ExecutionStatus = 'Running'", 2)

    fine, fewer = await asyncio.gather(
        operator.answer("replay"), operator.answer("replay", "--days", "0", "--clicks", "1")
    )

    assert fine == {"replayed": 2, "not_begun": 2, "gone": 0, "failures": []}
    assert fewer == {"replayed": 1, "not_begun": 1, "gone": 0, "failures": []}

    strange = await world.click(referrer, start=False)
    start = run_start(strange, referrer)
    async with Worker(client, task_queue="elsewhere", workflows=[Another]):
        handle = await client.start_workflow(
            messages.WORKFLOW, start, id=messages.workflow_id(strange.referral_id), task_queue="elsewhere"
        )
        await listed(client, "ReferralStage = 'signed_up'", 2)

    document, text, narrowed, refused, away = await asyncio.gather(
        operator.answer("replay", status=1),
        operator.says("replay"),
        operator.answer("replay", "--query", f"WorkflowId != '{handle.id}'"),
        operator.says("replay", "--query", "Nonsense = 1", "--json"),
        operator.says("replay", "--json", TEMPORAL_ADDRESS="127.0.0.1:1"),
    )

    [failure] = document["failures"]
    assert (failure["workflow_id"], failure["run_id"]) == (handle.id, handle.first_execution_run_id)
    assert (failure["verdict"], failure["status"], failure["stage"]) == ("nondeterminism", "RUNNING", "signed_up")
    assert failure["words"]
    assert document["replayed"] == 3
    assert text.status == 1
    assert handle.id in text.out
    assert "3 replayed, 1 failed" in text.out
    assert narrowed["failures"] == []
    assert (refused.status, refused.out, away.status, away.out) == (2, "", 2, "")
    assert refused.err.startswith("referrals: Temporal: ")
    assert away.err.startswith("referrals: ")


# The doctor


def verdicts(document: Any) -> dict[str, tuple[str, str]]:
    """What was found, the worst of each."""
    order = ["ok", "note", "warning", "problem"]
    found: dict[str, tuple[str, str]] = {}
    for each in document["examined"]:
        known = found.get(each["what"], ("ok", ""))
        if each["what"] not in found or order.index(each["verdict"]) > order.index(known[0]):
            found[each["what"]] = (each["verdict"], each["words"])
    return found


def everything(operator: Operator, urls: DatabaseUrls) -> dict[str, str]:
    """The environment of a starter."""
    known = operator.environment
    return environment(urls, known["REFERRALS_TASK_QUEUE"], known["TEMPORAL_ADDRESS"], 0)


async def test_where_everything_is_as_it_should_be_the_doctor_says_so(
    own_world: World, operator: Operator, database_urls: DatabaseUrls
) -> None:
    await set_up_schedules(own_world.environment.client, own_world.task_queue)
    async with own_world.worker(), own_world.upkeep_worker():
        settings = everything(operator, database_urls)
        document = await operator.answer("doctor", "--for", "worker", "--for", "starter", status=0, **settings)
        text = await operator.says("doctor", **settings)

    found = verdicts(document)
    assert document["sound"] is True
    assert {verdict for verdict, _ in found.values()} == {"ok"}, found
    assert set(found) == {
        "settings of the worker",
        "settings of the starter",
        "webhook secrets",
        "plans",
        "database",
        "schema",
        "clock",
        "temporal",
        "search attributes",
        "schedules",
        "workers",
        "runs",
    }
    assert text.status == 0
    for secret in ("the first API key", "whsec_", "token secret", "postgresql://"):
        assert secret not in document["examined"].__str__() + text.out


async def test_settings_and_secrets_of_the_wrong_form_are_named(
    operator: Operator, database_urls: DatabaseUrls
) -> None:
    settings = everything(operator, database_urls) | {
        "REFERRALS_STRIPE_WEBHOOK_SECRETS": "sk_test_0123456789abcdef0123,whsec_short-and-long-enough?",
        "REFERRALS_ATTRIBUTION_WINDOW": "soon",
        "REFERRALS_PLANS_FILE": "/nowhere/plans.toml",
        "REFERRALS_TOKEN_SECRETS": "",
    }

    document = await operator.answer("doctor", "--for", "starter", status=1, **settings)

    said = {(each["what"], each["verdict"]): each["words"] for each in document["examined"]}
    assert said["settings", "problem"].startswith("REFERRALS_ATTRIBUTION_WINDOW: ")
    assert said["settings of the starter", "problem"] == "not set: REFERRALS_TOKEN_SECRETS"
    assert said["webhook secrets", "problem"].startswith("number 1 is an API key")
    assert said["webhook secrets", "warning"].startswith("number 2 does not look like one")
    assert "/nowhere/plans.toml" in said["plans", "problem"]
    assert "sk_test_0123456789abcdef0123" not in str(document)


async def test_what_was_not_prepared_is_named(postgres: EmbeddedPostgres, operator: Operator, own_world: World) -> None:
    old = copied_database(postgres, "template0", unique("old"))
    migrate(old.owner, "0009")
    client = own_world.environment.client
    await set_up_schedules(client, own_world.task_queue)
    await client.get_schedule_handle(JOBS[0].schedule_id).pause(note="moving")
    await client.get_schedule_handle(JOBS[1].schedule_id).delete()

    behind, nowhere, without = await asyncio.gather(
        operator.answer("doctor", status=1, REFERRALS_DATABASE_URL=old.app),
        operator.answer("doctor", status=1, TEMPORAL_NAMESPACE=unique("nobodys")),
        operator.answer("doctor", status=1, TEMPORAL_ADDRESS="127.0.0.1:1", REFERRALS_DATABASE_URL=""),
    )

    said = verdicts(behind)
    assert said["schema"] == ("problem", f"version 0009, and this code wants {newest_version()}: referrals migrate")
    words = {each["words"] for each in behind["examined"] if each["what"] == "schedules"}
    assert {one.partition(":")[0] for one in words} == {
        f"{JOBS[0].schedule_id} is paused",
        f"{JOBS[1].schedule_id} is missing",
    }
    workers = {each["words"] for each in behind["examined"] if each["what"] == "workers"}
    assert {one.split(":")[0] for one in workers} == {
        f"none polls the queue {own_world.task_queue}",
        f"none polls the queue {upkeep_queue(own_world.task_queue)}",
    }
    assert verdicts(nowhere)["temporal"][1].startswith("there is no namespace nobodys")
    assert verdicts(without)["temporal"][0] == "problem"
    assert verdicts(without)["database"] == ("problem", "not looked at: set REFERRALS_DATABASE_URL")


async def test_a_schema_that_is_newer_is_a_problem_only_where_this_code_cannot_work_with_it(
    operator: Operator, owner: "psycopg.Connection[tuple[Any, ...]]"
) -> None:
    owner.execute("UPDATE alembic_version SET version_num = '9999'")
    serves = verdicts(await operator.answer("doctor", status=1))["schema"]
    owner.execute("COMMENT ON TABLE alembic_version IS 'serves 9999'")
    refuses = verdicts(await operator.answer("doctor", status=1))["schema"]

    assert serves[0] == "warning"
    assert refuses == ("problem", f"version 9999 is newer than this code, which knows {newest_version()}: deploy it")


async def test_clocks_that_differ_and_a_role_that_may_too_much_are_named(
    operator: Operator, database_urls: DatabaseUrls, postgres: EmbeddedPostgres
) -> None:
    name = sql.Identifier(database_urls.app.rpartition("/")[2])
    with psycopg.connect(postgres.superuser_url(), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} SET referrals.clock_offset = '5 minutes'").format(name))

    document = await operator.answer("doctor", status=1, REFERRALS_DATABASE_URL=database_urls.owner)

    said = [each["words"] for each in document["examined"] if each["what"] == "clock"]
    assert said[0].startswith("referrals.clock_offset is set to 5 minutes")
    apart = re.fullmatch(r"the database's is (\d+\.\d) s ahead", said[1])
    assert apart is not None, said
    # Exact to half of what the question took.
    assert abs(float(apart[1]) - 300) < 1, said
    assert verdicts(document)["database role"][0] == "warning"
