"""A stack with ten things wrong with it, to practise docs/operating.md on.

    python -m tests.ten_problems plant --data FOLDER     # plants them, and stays up until Ctrl-C
    python -m tests.ten_problems restart starter --data FOLDER

`plant` brings up the servers and the starter, and tells where the settings are; with `--tell` also what is wrong. The
other commands stand for what a platform has to run programs: `start`, `stop` and `restart`, of `worker`, `starter` and
`backend`, each with the environment in FOLDER/NAME.env. FOLDER/stripe.json is Stripe's dashboard: what it shows can be
read there, and prices can be changed. tests/test_ten_problems.py plants, finds and mends the same.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import structlog
import uvicorn
from alembic.script import ScriptDirectory
from temporalio import workflow
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.referral import LedgerActivities
from devstack.postgres import EmbeddedPostgres
from devstack.processes import find, forget, is_alive, remember, stop
from ledger import reconciliation
from ledger.database import Database
from ledger.migrate import migrate, newest_version
from program.plans import load_plans
from program.referral import Stage
from runtime.schedules import set_up_schedules
from runtime.settings import PROJECT
from runtime.temporal import keep_quiet, set_up_namespace
from tests.conftest import BIN, free_port
from tests.http_support import API_KEYS, STRIPE_SECRETS, environment
from tests.stripe_events import Event, invoice_paid, price, signed, subscription, unique
from tests.stripe_server import API_KEY, StripeServer, stripe_server
from tests.support import MONTH, Clock, DatabaseUrls, Member, World, copied_database, refunded
from workflows.messages import SEARCH_ATTRIBUTES, WORKFLOW, ReferralStart, ReferralState
from workflows.payloads import DATA_CONVERTER
from workflows.reconciliation_messages import RECONCILIATION_ID
from workflows.referral import ReferralWorkflow

PROGRAMS = ("worker", "starter", "backend")
ENDPOINT = "crm"
NEW_PRICE = "price_season"

WRONG_SECRET = "whsec_of_the_endpoint_in_test_mode"
DELIVERY_SECRET = "whsec_b25seSB0aGUgdGVzdHMga25vdyB0aGlzIGtleSBoZXJl"

LATE = timedelta(minutes=45)
"""How long ago the bonuses were due that have not expired: more than `referrals check` lets pass."""

UNREAD = timedelta(hours=5)
"""For how long nobody has read Stripe's events."""

COMMANDS = {
    "worker": [sys.executable, str(PROJECT / "worker.py")],
    "starter": [sys.executable, "-m", "starter"],
    "backend": [sys.executable, "-m", "tests.ten_problems", "serve-backend"],
}


@dataclass(frozen=True)
class Ground:
    """Where the problems are planted: servers that run, and a folder for what the programs are started with."""

    folder: Path
    postgres: EmbeddedPostgres
    urls: DatabaseUrls
    temporal: str
    namespace: str
    task_queue: str
    stripe: StripeServer
    ui_url: str = ""


@dataclass
class Planted:
    """What was planted, for who must know: referrals and accounts by what is wrong with them."""

    referrals: dict[str, str] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    url: str = ""

    def told(self) -> list[str]:
        """What is wrong, a line each."""
        ids = self.referrals
        return [
            "no worker runs",
            f"{ids['unknown price']}: the friend has paid for {NEW_PRICE}, and no plan is known for it",
            f"{ids['held']}: a part of the payment was refunded before the credit, so it is held",
            f"{ids['missed']}: Stripe told nobody of the friend's payment, and reconciliation is paused",
            f"{ids['lagging']}: its run was terminated, and its bonuses do not expire",
            "the starter's webhook secret is that of another endpoint",
            f"the backend's endpoint {ENDPOINT} is down",
            f"{self.members['dora'].account_id} and {self.members['dora twice'].account_id} are one person, "
            f"and the signup was reported for the second: {ids['duplicate']}",
            "the newest migration was not applied",
            f"{ids['stuck']}: its history is of other code",
        ]


@workflow.defn(name=WORKFLOW)
class OtherCode(ReferralWorkflow):
    """The referral's life with a step more: its histories do not fit the code that is deployed."""

    @workflow.init
    def __init__(self, start: ReferralStart) -> None:
        super().__init__(start)

    @workflow.run
    async def run(self, start: ReferralStart) -> ReferralState:
        await workflow.sleep(timedelta(milliseconds=1))
        return await super().run(start)


class StripeDashboard:
    """Stripe's side: it knows what happened, tells of it until it is heard, and has prices that can be changed."""

    def __init__(self, server: StripeServer, file: Path, secret: str) -> None:
        self._server = server
        self._file = file
        self._secret = secret
        self._url = ""
        self._pending: list[Event] = []
        self._last = "nothing was sent yet"
        self.prices: dict[str, str | None] = {}
        server.before = lambda _: self._take_changes()

    def happens(self, *events: Event) -> None:
        """Something happens, and is not told for now."""
        self._server.happen(*events)

    def sends_to(self, url: str) -> None:
        """Where webhooks go."""
        self._url = f"{url}/stripe/webhooks"

    def tells(self, *events: Event) -> None:
        """Something happens, and will be told until it is heard."""
        self._server.happen(*events)
        self._pending += events

    def has_price(self, price_id: str) -> None:
        """Sell something that has no lookup key."""
        self.prices[price_id] = None
        self._server.add(_price(price_id, None))

    def name_price(self, price_id: str, lookup_key: str) -> None:
        """Give a price a lookup key, as in the dashboard."""
        shown = json.loads(self._file.read_text(encoding="utf-8"))
        shown["prices"][price_id] = lookup_key
        self._file.write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")

    def show(self) -> None:
        """Write down what the dashboard shows."""
        shown = {
            "endpoint": self._url,
            "signing_secret": self._secret,
            "last_delivery": self._last,
            "not_delivered": [event["id"] for event in self._pending],
            "prices": self.prices,
        }
        self._file.write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")

    async def send_again(self) -> list[int]:
        """Send what was not heard; gives the answers."""
        answers: list[int] = []
        await self._take_changes()
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            for event in list(self._pending):
                body, headers = signed(event, self._secret)
                try:
                    answers.append((await client.post(self._url, content=body, headers=headers)).status_code)
                except httpx.HTTPError:
                    answers.append(0)
                if answers[-1] == httpx.codes.OK:
                    self._pending.remove(event)
        if answers:
            self._last = f"{datetime.now(UTC):%H:%M:%S} UTC: {answers[-1] or 'no answer'}"
            self.show()
        return answers

    async def _take_changes(self) -> None:
        if self._file.exists():
            for price_id, lookup_key in json.loads(self._file.read_text(encoding="utf-8"))["prices"].items():
                if self.prices.get(price_id) != lookup_key:
                    self.prices[price_id] = lookup_key
                    self._server.add(_price(price_id, lookup_key))


def _price(price_id: str, lookup_key: str | None) -> dict[str, Any]:
    document: dict[str, Any] = price(price_id, lookup_key, product="prod_season", created=datetime.now(UTC))["data"]
    made: dict[str, Any] = document["object"]
    return made


# Planting


async def plant(ground: Ground) -> tuple[Planted, StripeDashboard]:
    """Plant all ten. Afterwards the starter runs, and no worker does.

    Args:
        ground: where; its database is empty.
    """
    stripe = StripeDashboard(ground.stripe, ground.folder / "stripe.json", STRIPE_SECRETS[0])
    planted = Planted()
    await asyncio.to_thread(migrate, ground.urls.owner)
    client = await Client.connect(ground.temporal, namespace=ground.namespace, data_converter=DATA_CONVERTER)
    await set_up_namespace(client)
    await set_up_schedules(client, ground.task_queue)
    # So it is that what no webhook told stays unknown.
    await client.get_schedule_handle(RECONCILIATION_ID).pause(note="quiet during the incident")
    clock = Clock()
    database = Database(ground.urls.app, offset=clock.offset)
    plans = load_plans(PROJECT / "plans.toml")
    world = World(database, plans, WorkflowEnvironment.from_client(client), clock, ground.task_queue)
    try:
        clock.advance(-LATE)
        await _expiries_that_do_not_come(world, planted)
        clock.advance(LATE)
        async with world.worker():
            await _payments_that_bring_nothing(world, planted, stripe)
            await _one_person_twice(world, planted)
        # Stripe's event comes, and nobody is there to take the referral on.
        await world.report(*_paying(planted.members["nora"]))
        async with database.transaction() as transaction:
            await reconciliation.events_were_read(transaction, datetime.now(UTC) - UNREAD)
    finally:
        await database.close()
    await asyncio.to_thread(take_back_newest_migration, ground.postgres, ground.urls)
    planted.url = _write_environments(ground)
    stripe.sends_to(planted.url)
    stripe.show()
    start(ground.folder, "starter")
    # It is alive, and not ready: the schema is behind.
    await until_answers(f"{planted.url}/healthz")
    await stripe.send_again()
    return planted, stripe


async def _expiries_that_do_not_come(world: World, planted: Planted) -> None:
    """One run was terminated by mistake, and one was begun by other code, both after the credit."""
    soon = timedelta(minutes=5)
    referrer = await world.subscriber("olga", started=MONTH - soon)
    for name, worker in (("stuck", _worker_of_other_code), ("lagging", World.worker)):
        async with worker(world):
            friend = await _signs_up(world, planted, name, referrer, name)
            await world.pay(friend, length=soon)
            await world.reaches(planted.referrals[name], Stage.CREDITED)
            if name == "lagging":
                await world.handle(planted.referrals[name]).terminate("cleaning up")


def _worker_of_other_code(world: World) -> Worker:
    steps = LedgerActivities(world.database, world.plans, world.policy, None)
    return Worker(
        world.environment.client,
        task_queue=world.task_queue,
        workflows=[OtherCode],
        workflow_runner=UnsandboxedWorkflowRunner(),
        activities=[steps.attribute_signup, steps.credit_both, steps.expire_bonuses, steps.decide],
    )


async def _payments_that_bring_nothing(world: World, planted: Planted, stripe: StripeDashboard) -> None:
    rita = planted.members["rita"] = await world.subscriber("rita")
    held, unknown, missed, refused, _ = [
        await _signs_up(world, planted, name, rita, member)
        for name, member in (
            ("held", "hugo"),
            ("unknown price", "uma"),
            ("missed", "mia"),
            ("refused webhook", "sam"),
            ("waiting for a worker", "nora"),
        )
    ]
    payment = _paying(held)
    await world.report(*refunded(payment, 900, datetime.now(UTC)), *payment)
    await world.reaches(planted.referrals["held"], Stage.IN_REVIEW)
    stripe.has_price(NEW_PRICE)
    await world.report(*_paying(unknown, plan="season"))
    stripe.happens(*_paying(missed))
    stripe.tells(*_paying(refused))


async def _one_person_twice(world: World, planted: Planted) -> None:
    """The backend makes two accounts of one person, and reports the signup for the second."""
    dora = planted.members["dora"] = await world.member("dora")
    twice = planted.members["dora twice"] = Member(
        f"{dora.account_id}-again", dora.email, dora.customer_id, dora.subscription_id, datetime.now(UTC)
    )
    await world.put(twice)
    rita = planted.members["rita"]
    click = await world.click(rita)
    planted.referrals["duplicate"] = (await world.sign_up(click, rita, twice)).referral_id
    await world.reaches(click.referral_id, Stage.REFUSED)
    await world.report(*_paying(dora))


async def _signs_up(world: World, planted: Planted, name: str, referrer: Member, member: str) -> Member:
    click = await world.click(referrer)
    friend = planted.members[member] = await world.member(member)
    planted.referrals[name] = (await world.sign_up(click, referrer, friend)).referral_id
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    return friend


def _paying(friend: Member, *, plan: str = "pro") -> list[Event]:
    now = datetime.now(UTC)
    return [
        subscription(friend.customer_id, friend.subscription_id, now, now + MONTH, plan=plan),
        invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH, plan=plan),
    ]


# A migration that was not applied

_OBJECTS = """
SELECT 'view', c.oid::regclass::text, format('DROP VIEW IF EXISTS %s CASCADE', c.oid::regclass)
    FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('v', 'm')
UNION ALL SELECT 'table', c.oid::regclass::text, format('DROP TABLE IF EXISTS %s CASCADE', c.oid::regclass)
    FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
UNION ALL SELECT 'column', c.oid::regclass || '.' || attname,
        format('ALTER TABLE IF EXISTS %s DROP COLUMN IF EXISTS %I CASCADE', c.oid::regclass, attname)
    FROM pg_class c JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
UNION ALL SELECT 'constraint', conrelid::regclass || '.' || conname,
        format('ALTER TABLE IF EXISTS %s DROP CONSTRAINT IF EXISTS %I CASCADE', conrelid::regclass, conname)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid <> 0
UNION ALL SELECT 'index', c.oid::regclass::text, format('DROP INDEX IF EXISTS %s', c.oid::regclass)
    FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind = 'i'
UNION ALL SELECT 'trigger', tgrelid::regclass || '.' || tgname,
        format('DROP TRIGGER IF EXISTS %I ON %s', tgname, tgrelid::regclass)
    FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'function', p.oid::regprocedure::text,
        format('DROP FUNCTION IF EXISTS %s CASCADE', p.oid::regprocedure)
    FROM pg_proc p WHERE pronamespace = 'public'::regnamespace AND prokind = 'f'
"""
_FUNCTIONS = """
SELECT oid::regprocedure::text, pg_get_functiondef(oid) FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace AND prokind = 'f'
"""
_ORDER = ("view", "table", "column", "constraint", "index", "trigger", "function")


def take_back_newest_migration(postgres: EmbeddedPostgres, urls: DatabaseUrls) -> str:
    """Bring a database to the version before the newest, whichever that is, as if its migration had never run.

    What there is too much is found by a database that was migrated only so far. Gives that version.
    """
    newest = ScriptDirectory(str(PROJECT / "ledger" / "migrations")).get_revision(newest_version())
    before = str(newest.down_revision)
    scratch = copied_database(postgres, "template0", unique("before"))
    migrate(scratch.owner, before)
    with _connected(scratch.owner) as connection:
        known = {(row[0], row[1]) for row in connection.execute(_OBJECTS)}
        functions = {row[0]: row[1] for row in connection.execute(_FUNCTIONS)}
    with _connected(urls.owner) as connection:
        new = [row for row in connection.execute(_OBJECTS).fetchall() if (row[0], row[1]) not in known]
        assert new, f"nothing is to be seen of migration {newest.revision}"
        for _, _, drop in sorted(new, key=lambda row: _ORDER.index(row[0])):
            connection.execute(drop)
        for name, definition in connection.execute(_FUNCTIONS).fetchall():
            if definition != functions[name]:
                connection.execute(functions[name])
        connection.execute("UPDATE alembic_version SET version_num = %s", [before])
    with psycopg.connect(postgres.superuser_url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {scratch.owner.rpartition('/')[2]} WITH (FORCE)")
    return before


def _connected(url: str) -> psycopg.Connection:
    return psycopg.connect(url.replace("+psycopg", ""))


# The programs


def _write_environments(ground: Ground) -> str:
    """Write down what each program is started with; gives the starter's address."""
    shutil.copy(PROJECT / "plans.toml", ground.folder / "plans.toml")
    port, backend_port = free_port(), free_port()
    everything = {
        **environment(ground.urls, ground.task_queue, ground.temporal, port),
        "TEMPORAL_NAMESPACE": ground.namespace,
        "REFERRALS_PLANS_FILE": str(ground.folder / "plans.toml"),
        "REFERRALS_STRIPE_API_KEY": API_KEY,
        "REFERRALS_STRIPE_API_BASE": ground.stripe.base,
        "REFERRALS_PUBLIC_URL": (url := f"http://127.0.0.1:{port}"),
    }
    starters = ("API_KEYS", "STRIPE_WEBHOOK_SECRETS", "PUBLIC_URL", "SIGNUP_URL", "TOKEN_SECRETS", "PORT")
    shared = {name: value for name, value in everything.items() if name.removeprefix("REFERRALS_") not in starters}
    deliveries = {
        "REFERRALS_DELIVERY_ENDPOINTS": f"{ENDPOINT}=http://127.0.0.1:{backend_port}/referrals",
        "REFERRALS_DELIVERY_SECRETS": DELIVERY_SECRET,
    }
    write_environment(ground.folder, "worker", shared | deliveries)
    write_environment(ground.folder, "starter", everything | {"REFERRALS_STRIPE_WEBHOOK_SECRETS": WRONG_SECRET})
    write_environment(ground.folder, "backend", {"PORT": str(backend_port)})
    write_environment(
        ground.folder,
        "operator",
        shared
        | {
            "REFERRALS_MIGRATION_DATABASE_URL": ground.urls.owner,
            "REFERRALS_URL": url,
            "REFERRALS_API_KEY": API_KEYS[0],
            **({"REFERRALS_UI_URL": ground.ui_url} if ground.ui_url else {}),
        },
    )
    return url


def write_environment(folder: Path, name: str, values: dict[str, str]) -> None:
    """Write an environment, for `set -a; . FILE; set +a` too."""
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in values.items()]
    (folder / f"{name}.env").write_text("".join(lines), encoding="utf-8")


def read_environment(folder: Path, name: str) -> dict[str, str]:
    """The environment that was written, as it is by now."""
    lines = (folder / f"{name}.env").read_text(encoding="utf-8").splitlines()
    pairs = [shlex.split(line)[0].partition("=") for line in lines if line.strip() and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def start(folder: Path, name: str) -> None:
    """Start a program that does not run, with its environment as it is by now."""
    if find(folder, name) is not None:
        return
    ours = ("REFERRALS_", "TEMPORAL_")
    surrounding = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            COMMANDS[name],
            cwd=PROJECT,
            env=surrounding | read_environment(folder, name),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    remember(folder, name, process.pid)


def end(folder: Path, name: str) -> None:
    """Stop a program, if it runs."""
    process = find(folder, name)
    if process is not None and is_alive(process):
        stop(process, signal.SIGTERM, 25)
    forget(folder, name)


def restart(folder: Path, name: str) -> None:
    """Stop a program and start it again, with its environment as it is by now."""
    end(folder, name)
    start(folder, name)


async def until_answers(url: str, seconds: float = 60) -> None:
    """Wait until an address answers that all is well."""
    async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(url)).status_code == httpx.codes.OK:
                    return
            await asyncio.sleep(0.05)


async def backend(scope: MutableMapping[str, Any], _receive: object, send: Callable[[dict[str, Any]], Any]) -> None:
    """The product's backend, as far as it is told: it takes everything (ASGI)."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


# At a shell


@contextlib.asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[Ground]:
    """Servers of its own for a folder, with nothing in them."""
    postgres = EmbeddedPostgres(folder / "postgres", free_port(), settings={"fsync": "off"})
    await asyncio.to_thread(postgres.start)
    try:
        urls = DatabaseUrls(
            *(url.replace("postgresql:", "postgresql+psycopg:") for url in (postgres.owner_url, postgres.app_url))
        )
        ui_port = free_port()
        temporal = await WorkflowEnvironment.start_local(
            ui=True,
            ui_port=ui_port,
            dev_server_existing_path=str(BIN / "temporal"),
            dev_server_log_level="error",
            search_attributes=SEARCH_ATTRIBUTES,
            data_converter=DATA_CONVERTER,
        )
        async with temporal, stripe_server() as stripe:
            address = temporal.client.service_client.config.target_host
            yield Ground(folder, postgres, urls, address, "default", "referrals", stripe, f"http://127.0.0.1:{ui_port}")
    finally:
        await asyncio.to_thread(postgres.destroy)


async def practise(folder: Path, tell: Callable[[str], None], *, all_of_it: bool) -> None:
    """Plant, and stay up until somebody asks to stop."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with servers(folder) as ground:
        try:
            tell("planting; that takes some seconds")
            planted, stripe = await plant(ground)
            tell("ten things are wrong; find and mend them with docs/operating.md")
            tell(f"  what operators have:   set -a; . {folder}/operator.env; set +a")
            tell(f"  what Stripe shows:     {folder}/stripe.json")
            tell(f"  programs' settings:    {', '.join(f'{folder}/{name}.env' for name in PROGRAMS)}")
            tell(f"  to (re)start one:      python -m tests.ten_problems restart NAME --data {folder}")
            tell(f"  Temporal's Web UI:     {ground.ui_url}")
            for line in planted.told() if all_of_it else ():
                tell(f"- {line}")
            tell("Ctrl-C stops everything")
            while not stopped.is_set():
                await stripe.send_again()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), 5)
        finally:
            for name in PROGRAMS:
                await asyncio.to_thread(end, folder, name)


def main(arguments: Sequence[str] | None = None) -> None:
    """The commands."""
    parser = argparse.ArgumentParser(prog="python -m tests.ten_problems", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    planting = commands.add_parser("plant", help="plant all ten, and stay up until Ctrl-C")
    planting.add_argument("--tell", action="store_true", help="say what is wrong")
    for name in ("start", "stop", "restart"):
        commands.add_parser(name, help=f"{name} a program").add_argument("program", choices=PROGRAMS)
    for command in commands.choices.values():
        command.add_argument("--data", type=Path, required=True, help="the folder of the stack; a new one to plant")
    commands.add_parser("serve-backend", help="be the product's backend, on PORT")
    given = parser.parse_args(arguments)
    if given.command == "serve-backend":
        uvicorn.run(backend, port=int(os.environ["PORT"]), lifespan="off", access_log=False)
        return
    folder: Path = given.data.resolve()
    if given.command == "plant":
        # What the planting says of its steps would tell where the problems are.
        keep_quiet()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"{folder} is not empty: name a new folder")
        asyncio.run(practise(folder, lambda line: print(line, flush=True), all_of_it=given.tell))
        return
    {"start": start, "stop": end, "restart": restart}[given.command](folder, given.program)


if __name__ == "__main__":
    main()
