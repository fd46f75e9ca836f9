"""The commands of whoever deploys, and that every command that answers something can answer with JSON."""

import asyncio
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest
from typer.main import get_command

from cli.main import app
from devstack.postgres import EmbeddedPostgres
from ledger.migrate import migrate, newest_version, revisions
from program.referral import Stage
from runtime.health import health_at
from runtime.settings import PROJECT
from tests.conftest import BIN, free_port
from tests.operator_support import Operator, operator_of
from tests.stripe_events import unique
from tests.support import DatabaseUrls, World, copied_database, until
from tests.test_kubernetes import SCALED_BY
from tests.test_versioning import builds, release
from worker import deployment

PROGRAMS = {"dev", "worker", "api"}
"""They run until told to stop, and answer nothing."""

DOCUMENTS = {"openapi"}
"""What they answer with is one JSON document anyway."""


def test_every_command_that_answers_something_can_answer_with_json() -> None:
    without = {
        name
        for name, command in _commands(get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == PROGRAMS | DOCUMENTS


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", each) for inner, each in _commands(command))
        else:
            yield name, command


@pytest.fixture
def operator(live_idle_world: World, database_urls: DatabaseUrls) -> Operator:
    return operator_of(live_idle_world, database_urls)


def given(operator: Operator, **settings: str) -> Operator:
    return Operator({**operator.environment, **settings})


async def test_migrate_tells_what_is_pending_and_what_it_did(postgres: EmbeddedPostgres, operator: Operator) -> None:
    urls = copied_database(postgres, "template0", unique("pending"))
    owner = given(operator, REFERRALS_MIGRATION_DATABASE_URL=urls.owner.replace("+psycopg", ""))
    migrate(urls.owner, "0009")
    missing = [each.version for each in revisions() if each.version > "0009"]
    behind = {"version": "0009", "wanted": newest_version(), "migrations": missing}
    assert await operator.answer("migrate", "--check", status=1, REFERRALS_DATABASE_URL=urls.app) == behind
    said = await owner.says("migrate", "--check")
    assert (said.status, said.out) == (1, f"the database is at version 0009; pending: {', '.join(missing)}\n")
    assert await owner.answer("migrate") == {"version": newest_version(), "applied": missing}
    assert await owner.answer("migrate") == {"version": newest_version(), "applied": []}
    said = await owner.says("migrate", "--check")
    assert (said.status, said.out) == (0, f"the database is at version {newest_version()}; nothing is pending\n")


async def test_a_database_that_is_away_is_neither_up_to_date_nor_pending(operator: Operator) -> None:
    away = f"postgresql://nobody:secret-of-nobody@127.0.0.1:{free_port()}/none"
    said = await operator.says("migrate", "--check", "--json", REFERRALS_MIGRATION_DATABASE_URL=away)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("referrals: the database: connection failed")
    assert len(said.err.splitlines()) == 1
    assert "secret-of-nobody" not in said.err


async def test_a_program_can_wait_for_the_migrations_of_its_release(
    postgres: EmbeddedPostgres, operator: Operator
) -> None:
    urls = copied_database(postgres, "template0", unique("pending"))
    waiting = asyncio.create_task(
        operator.says("migrate", "--check", "--patience", "60", REFERRALS_DATABASE_URL=urls.app)
    )

    async def looked() -> int:
        with psycopg.connect(postgres.superuser_url()) as connection:
            counted = "SELECT sessions FROM pg_stat_database WHERE datname = %s"
            [sessions] = connection.execute(counted, [urls.app.rpartition("/")[2]]).fetchone() or [0]
        return int(sessions)

    await until(looked, lambda sessions: sessions > 0)
    assert not waiting.done()
    await asyncio.to_thread(migrate, urls.owner)
    assert (await waiting).status == 0


async def test_setup_temporal_answers_whether_anything_had_to_be_done(operator: Operator) -> None:
    first = await operator.answer("setup-temporal")
    assert first["namespace"] == "default"
    assert await operator.answer("setup-temporal") == {"namespace": "default", "changed": False}


async def start(command: str, operator: Operator, **settings: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        BIN / "referrals",
        command,
        env={"PATH": str(BIN), **operator.environment, **settings},
        # Where something of the same name lies.
        cwd=PROJECT / "tests",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def test_the_worker_and_the_http_side_run_as_commands_and_stop_when_told(
    operator: Operator, live_idle_world: World
) -> None:
    world, port = live_idle_world, free_port()
    settings = {
        "REFERRALS_API_KEYS": "a-key-for-the-backend",
        "REFERRALS_STRIPE_WEBHOOK_SECRETS": "whsec_of_the_endpoint_here",
        "REFERRALS_TOKEN_SECRETS": "signs-the-tokens-here",
        "REFERRALS_IDENTITY_HASH_KEY": "keys-the-hashes-here",
        "REFERRALS_PUBLIC_URL": "https://refer.example",
        "REFERRALS_SIGNUP_URL": "https://app.example/signup",
        "REFERRALS_PORT": str(port),
    }
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    health, metrics = free_port(), free_port()
    addresses = {
        "REFERRALS_HEALTH_ADDRESS": f"127.0.0.1:{health}",
        "REFERRALS_METRICS_ADDRESS": f"127.0.0.1:{metrics}",
    }
    worker, api = await start("worker", operator, **addresses), await start("api", operator, **settings)

    async def said_at(where: int, path: str) -> str:
        assert (worker.returncode, api.returncode) == (None, None)
        try:
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"http://127.0.0.1:{where}{path}")
                return answer.text if answer.is_success else ""
        except httpx.HTTPError:
            return ""

    try:
        await world.sign_up(click, referrer, friend)
        await world.reaches(click.referral_id, Stage.SIGNED_UP)
        await until(lambda: said_at(port, "/readyz"), bool)
        assert await said_at(health, "/readyz") == "ready\n"
        assert await said_at(health, "/healthz") == "alive\n"
        assert await said_at(health, "/metrics") == ""
        # What the workers are scaled by is there, in seconds, under the name of the queue.
        told = await said_at(metrics, "/metrics")
        waited = [line for line in told.splitlines() if line.startswith(SCALED_BY[0])]
        assert any(f'task_queue="{world.task_queue}"' in line and 'le="0.5"' in line for line in waited), told
        for program in (worker, api):
            program.send_signal(signal.SIGTERM)
        said = [(await program.communicate())[0].decode() for program in (worker, api)]
    finally:
        for program in (worker, api):
            if program.returncode is None:
                program.kill()
    assert worker.returncode == 0, said[0]
    assert "worker stops" in said[0]
    assert api.returncode in (0, -signal.SIGTERM), said[1]
    assert "Application shutdown complete" in said[1]


async def test_a_worker_that_cannot_work_is_alive_and_not_ready() -> None:
    working = False
    async with health_at("127.0.0.1:0", lambda: working) as port, httpx.AsyncClient() as client:
        address = f"http://127.0.0.1:{port}"
        assert (await client.get(f"{address}/healthz")).status_code == 200
        assert (await client.get(f"{address}/readyz")).status_code == 503
        working = True
        assert (await client.head(f"{address}/readyz")).status_code == 200
        assert (await client.post(f"{address}/readyz")).status_code == 404
        # Whoever sends without an end is not listened to.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /" + b"x" * 10_000)
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(RuntimeError, match="REFERRALS_HEALTH_ADDRESS"):
            async with health_at(f"127.0.0.1:{port}", lambda: True):
                pass
    for wrong in ("nowhere", "127.0.0.1:http", "127.0.0.1:99999"):
        with pytest.raises(RuntimeError, match="cannot answer"):
            async with health_at(wrong, lambda: True):
                pass


async def test_a_program_that_lacks_settings_says_which_and_ends_with_1(operator: Operator) -> None:
    for command in ("worker", "api"):
        program = await start(command, operator, REFERRALS_DATABASE_URL="")
        said, _ = await program.communicate()
        assert program.returncode == 1
        assert b"REFERRALS_DATABASE_URL" in said


async def test_a_release_is_tried_made_current_and_rolled_back(operator: Operator, live_idle_world: World) -> None:
    world, name = live_idle_world, unique("referrals")
    assert (await operator.refusal("versions")).startswith("set REFERRALS_DEPLOYMENT_NAME")
    operator = given(operator, REFERRALS_DEPLOYMENT_NAME=name)
    unknown = await operator.refusal("versions")
    assert unknown.startswith(f"no worker of a deployment {name}")
    missing = await operator.refusal("set-current-version", "1", "--patience", "0")
    assert missing.startswith("release 1 was not made current within 0 seconds")
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    async with (
        world.worker(versions=deployment(release(name, "1"))),
        world.worker(versions=deployment(release(name, "2"))),
    ):
        first = await operator.answer("set-current-version", "1")
        assert first["current"] == "1"
        await world.sign_up(click, referrer, friend)
        await world.reaches(click.referral_id, Stage.SIGNED_UP)
        assert set(await builds(world, click.referral_id)) == {"1"}

        tried = await operator.answer("set-current-version", "2", "--ramp", "10")
        assert (tried["current"], {each["build_id"]: each["ramp"] for each in tried["versions"]}) == (
            "1",
            {"1": None, "2": 10},
        )
        taken_back = await operator.answer("set-current-version", "2", "--ramp", "0")
        assert {each["build_id"]: each["ramp"] for each in taken_back["versions"]}["2"] in (None, 0)

        await operator.answer("set-current-version", "2")
        await world.pay(friend, length=timedelta(days=1))
        await world.reaches(click.referral_id, Stage.CREDITED)
        assert (await builds(world, click.referral_id))[-1] == "2"

        back = await operator.answer("set-current-version", REFERRALS_BUILD_ID="1")
        assert back["current"] == "1"
        shown = await operator.says("versions")
    assert shown.status == 0
    assert ["1", "current"] in [line.split()[:2] for line in shown.out.splitlines()]
