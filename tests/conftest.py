"""Real servers for the tests: one PostgreSQL and one Temporal dev server a run, a database of its own a test."""

import asyncio
import itertools
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings
from playwright.async_api import Browser
from psycopg import sql
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from billing.api import StripeApi
from devstack.postgres import OWNER, EmbeddedPostgres
from devstack.temporal import POLLS_PER_SECOND
from ledger.database import Database
from ledger.migrate import migrate
from program.plans import Plans, load_plans
from runtime.settings import PROJECT
from tests.browser import NoBrowserError, find_or_get
from tests.browser_support import Site, browser_at, site_on
from tests.http_support import Starter, serve
from tests.rule_table import pytest_terminal_summary as pytest_terminal_summary
from tests.stripe_events import unique
from tests.stripe_server import API_KEY, StripeServer, stripe_server
from tests.support import Books, Clock, DatabaseUrls, World, copied_database
from workflows.messages import SEARCH_ATTRIBUTES
from workflows.payloads import DATA_CONVERTER

BIN = Path(sys.executable).parent

# How long an example takes says how busy the machine is.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that `tests/test_replay.py` and `tests/test_security_contract.py` explain."""
    parser.addoption("--record-histories", action="store_true", help="record the histories of this version anew")
    parser.addoption("--contract-examples", type=int, default=10, help="requests for each call of the API, about")
    parser.addoption("--contract-seed", type=int, default=1, help="decides what they are")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the run under faults: it mostly waits, and other processes have the rest to do meanwhile."""
    items.sort(key=lambda item: "under_faults" not in item.name)


_databases = itertools.count(1)


def free_port() -> int:
    """A port on loopback that nobody has."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def plans() -> Plans:
    """The plans on sale."""
    return load_plans(PROJECT / "plans.toml")


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server; durable writes are off, for nobody pulls the plug on it here."""
    directory = Path(tempfile.mkdtemp(prefix="referrals-tests-"))
    directory.chmod(0o755)
    settings = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "200"}
    server = EmbeddedPostgres(directory / "postgres", free_port(), settings=settings).start()
    try:
        yield server
    finally:
        server.destroy()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a migrated database to copy."""
    postgres.create_database("template_referrals")
    migrate(_url(postgres, OWNER, "template_referrals"))
    return "template_referrals"


def _url(postgres: EmbeddedPostgres, role: str, name: str) -> str:
    url = postgres.owner_url if role == OWNER else postgres.app_url
    return url.rpartition("/")[0].replace("postgresql://", "postgresql+psycopg://") + f"/{name}"


@pytest.fixture
def database_urls(postgres: EmbeddedPostgres, template: str) -> Iterator[DatabaseUrls]:
    """A database of the test's own, migrated, with nothing in it."""
    with _new_database(postgres, template) as urls:
        yield urls


@contextmanager
def _new_database(postgres: EmbeddedPostgres, template: str) -> Iterator[DatabaseUrls]:
    name = f"test_{next(_databases)}"
    yield copied_database(postgres, template, name)
    with psycopg.connect(postgres.superuser_url(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def owner(database_urls: DatabaseUrls) -> Iterator[psycopg.Connection]:
    """The owner of the test's database, who can change what the application may do."""
    with psycopg.connect(database_urls.owner.replace("+psycopg", ""), autocommit=True) as connection:
        yield connection


@pytest.fixture
async def clock() -> Clock:
    """The time of the test; real unless a test moves it."""
    return Clock()


@pytest.fixture
async def database(database_urls: DatabaseUrls, clock: Clock) -> AsyncIterator[Database]:
    """The test's database, as the application's role, on the test's clock."""
    database = Database(database_urls.app, offset=clock.offset)
    yield database
    await database.close()


@pytest.fixture
def books(database: Database, plans: Plans, clock: Clock) -> Books:
    """The ledger alone."""
    return Books(database, plans, clock)


@pytest.fixture
async def server() -> AsyncIterator[StripeServer]:
    """A stand-in for Stripe, of the test's own."""
    async with stripe_server() as server:
        yield server


@pytest.fixture
async def api(server: StripeServer) -> AsyncIterator[StripeApi]:
    """Stripe's API as the program reads it, from the stand-in: at no pace, and nothing is tried again."""
    api = StripeApi(API_KEY, server.base, requests_a_second=1000, retries=0)
    yield api
    await api.close()


@pytest.fixture
async def time_skipping(clock: Clock) -> AsyncIterator[WorkflowEnvironment]:
    """A Temporal test server whose time runs ahead when nothing happens, and the ledger's with it."""
    environment = await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=str(BIN / "temporal-test-server"),
        test_server_startup_timeout=timedelta(seconds=30),
        data_converter=DATA_CONVERTER,
    )
    async with environment:
        clock.follow(environment)
        await register_search_attributes(environment)
        yield environment
    # The SDK's own threads need a moment of the loop to let go of a server that has just closed.
    await asyncio.sleep(0)


async def register_search_attributes(environment: WorkflowEnvironment) -> None:
    """Make the search attributes known to a server that wants that first."""
    from temporalio.api.enums.v1 import IndexedValueType
    from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest

    await environment.client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(
            namespace=environment.client.namespace,
            search_attributes={
                key.name: IndexedValueType.ValueType(key.indexed_value_type) for key in SEARCH_ATTRIBUTES
            },
        )
    )


@pytest.fixture
def idle_world(database: Database, plans: Plans, time_skipping: WorkflowEnvironment, clock: Clock) -> World:
    """The program on the time-skipping server and the test's database; no worker runs."""
    return World(database, plans, time_skipping, clock)


@pytest.fixture
async def world(idle_world: World) -> AsyncIterator[World]:
    """The program on the time-skipping server and the test's database, with a worker running."""
    async with idle_world.worker():
        yield idle_world


async def start_dev_server(*arguments: str, ui_port: int | None = None) -> WorkflowEnvironment:
    """Start Temporal's development server, which is the real server, with further arguments of its command line.

    Args:
        arguments: of its command line.
        ui_port: where the Web UI is served; by default it is not.
    """
    return await WorkflowEnvironment.start_local(
        ui=ui_port is not None,
        ui_port=ui_port,
        dev_server_existing_path=str(BIN / "temporal"),
        dev_server_extra_args=[
            "--dynamic-config-value",
            f"history.transferProcessorMaxPollRPS={POLLS_PER_SECOND}",
            # A run whose code fails is reported at its first failure, not at the fifth, which takes a minute to come.
            "--dynamic-config-value",
            "system.numConsecutiveWorkflowTaskProblemsToTriggerSearchAttribute=1",
            *arguments,
        ],
        dev_server_startup_timeout=timedelta(seconds=30),
        search_attributes=SEARCH_ATTRIBUTES,
        data_converter=DATA_CONVERTER,
    )


@pytest.fixture(scope="session")
def dev_server() -> Iterator[str]:
    """The address of a real Temporal server, one for all tests; each takes a task queue of its own."""
    with asyncio.Runner() as loop:
        environment = loop.run(start_dev_server())
        try:
            yield environment.client.service_client.config.target_host
        finally:
            loop.run(environment.shutdown())


@pytest.fixture
async def short_histories_world(database: Database, plans: Plans, clock: Clock) -> AsyncIterator[World]:
    """The program on a real Temporal server that soon suggests to continue in a new run; no worker runs."""
    async with await start_dev_server("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=20") as server:
        yield World(database, plans, server, clock)


@pytest.fixture
async def live_idle_world(database: Database, plans: Plans, dev_server: str, clock: Clock) -> World:
    """The program on the real Temporal server, in real time; no worker runs."""
    client = await Client.connect(dev_server, data_converter=DATA_CONVERTER)
    return World(database, plans, WorkflowEnvironment.from_client(client), clock, unique("queue"))


@pytest.fixture
async def live_world(live_idle_world: World) -> AsyncIterator[World]:
    """The program on the real Temporal server, in real time, with a worker running."""
    async with live_idle_world.worker():
        yield live_idle_world


@pytest.fixture
async def starter(live_idle_world: World, database_urls: DatabaseUrls) -> AsyncIterator[Starter]:
    """The starter's app on the real Temporal server and the test's database; no worker runs."""
    async with serve(live_idle_world, database_urls) as starter:
        yield starter


@pytest.fixture
async def whole_program(starter: Starter) -> AsyncIterator[Starter]:
    """The starter's app on the real servers, with a worker running."""
    async with starter.world.worker():
        yield starter


@pytest.fixture(scope="session")
def browser_path() -> Path:
    """A browser, which is got where there is none."""
    try:
        return find_or_get()
    except NoBrowserError as error:
        why = str(error)
    pytest.fail(why, pytrace=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(browser_path: Path) -> AsyncIterator[Browser]:
    """A real browser that runs, one for the tests of a module: they run in one loop, marked so."""
    async with browser_at(browser_path) as browser:
        yield browser


@pytest.fixture(scope="module")
def module_urls(postgres: EmbeddedPostgres, template: str) -> Iterator[DatabaseUrls]:
    """A database for all tests of a module."""
    with _new_database(postgres, template) as urls:
        yield urls


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(browser: Browser, module_urls: DatabaseUrls, plans: Plans, dev_server: str) -> AsyncIterator[Site]:
    """The whole program on the real servers, on an address of its own, for all tests of a module."""
    clock = Clock()
    database = Database(module_urls.app, offset=clock.offset)
    client = await Client.connect(dev_server, data_converter=DATA_CONVERTER)
    world = World(database, plans, WorkflowEnvironment.from_client(client), clock, unique("queue"))
    try:
        async with world.worker(), site_on(browser, world, module_urls) as site:
            yield site
    finally:
        await database.close()
