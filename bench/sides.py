"""Everything that one run measures: the servers, the program, and what it is compared with."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from temporalio.client import Client

from bench.bare_side import BareSide
from bench.figures import ROUNDS
from bench.on_dbos import EXECUTOR, SYSTEM_DATABASE
from bench.program import Program
from bench.servers import Process, Servers, ready
from devstack.ports import free_port
from ledger.migrate import migrate
from workflows.payloads import DATA_CONVERTER

ON_DBOS = "referrals_on_dbos"
"""The database of the other engine's side: its own tables, and a ledger of its own."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Args:
        rounds: how often each side has its turn.
        lifecycles: referrals a round.
        one_by_one: credits a round, each waited for.
        together: credits a round, eight at a time.
        clicks: clicks a round.
        events: webhooks a round.
        waiting_clicks: that a worker has to remember nothing of.
        woken: referrals that wait while the worker is started anew.
        population: referrals in the large ledger.
        star: how many of them are one referrer's.
        reads: of each kind a round.
        expiries: due bonuses that are expired a round.
    """

    rounds: int
    lifecycles: int
    one_by_one: int
    together: int
    clicks: int
    events: int
    waiting_clicks: int
    woken: int
    population: int
    star: int
    reads: int
    expiries: int


FULL = Sizes(
    rounds=ROUNDS,
    lifecycles=200,
    one_by_one=40,
    together=200,
    clicks=500,
    events=500,
    waiting_clicks=20_000,
    woken=2_000,
    population=1_000_000,
    star=100_000,
    reads=400,
    expiries=200,
)

QUICK = Sizes(
    rounds=ROUNDS,
    lifecycles=24,
    one_by_one=8,
    together=48,
    clicks=80,
    events=120,
    waiting_clicks=2_000,
    woken=100,
    population=50_000,
    star=5_000,
    reads=100,
    expiries=40,
)

SMALL = 1_000
"""Referrals in the small ledger, a tenth of them one referrer's."""


@dataclass
class Sides:
    """The servers and the sides on them. The program and the bare side run; others are started by who needs them."""

    servers: Servers
    sizes: Sizes
    say: Callable[[str], None]
    client: Client
    program: Program
    bare: BareSide
    worker: Process
    starter: Process

    def restart_worker(self) -> None:
        """Start the program's worker anew."""
        self.worker.stop()
        self.worker = self.servers.start_worker()

    @asynccontextmanager
    async def on_dbos(self, processes: int = 2) -> AsyncIterator[Program]:
        """The program on another engine, with its own ledger on the same PostgreSQL."""
        servers = self.servers
        servers.postgres.create_database(ON_DBOS)
        migrate(f"{servers.database_url(owner=True).rpartition('/')[0]}/{ON_DBOS}")
        ports = [free_port() for _ in range(processes)]
        running = [servers.start(f"on DBOS {port}", ["-m", "bench.on_dbos"], self._dbos(port)) for port in ports]
        try:
            for process, port in zip(running, ports, strict=True):
                process.wait_until(lambda port=port: ready(port, "/healthz"))  # type: ignore[misc]
            credentials = servers.configuration.credentials
            with servers.connect(database=ON_DBOS) as books:
                program = Program(ports, credentials.api_key, credentials.stripe_webhook_secret, books)
                await program.prepare()
                yield program
                await program.close()
        finally:
            for process in running:
                process.stop()

    def _dbos(self, port: int) -> dict[str, str]:
        servers = self.servers
        return {
            **servers.starter_environment,
            "REFERRALS_PORT": str(port),
            "REFERRALS_DATABASE_URL": f"{servers.postgres.app_url.rpartition('/')[0]}/{ON_DBOS}",
            SYSTEM_DATABASE: f"{servers.database_url(owner=True).rpartition('/')[0]}/{ON_DBOS}",
            EXECUTOR: f"executor-{port}",
        }


@asynccontextmanager
async def sides(servers: Servers, sizes: Sizes, say: Callable[[str], None]) -> AsyncIterator[Sides]:
    """The program and the bare side, running on the servers."""
    say("starting the worker, the starter and the bare worker")
    worker, starter = servers.start_worker(), servers.start_starter()
    plain = await Client.connect(servers.temporal_address)
    bare = BareSide(servers, plain)
    bare.start_worker()
    client = await Client.connect(servers.temporal_address, data_converter=DATA_CONVERTER)
    credentials = servers.configuration.credentials
    with servers.connect() as books:
        program = Program([servers.configuration.port], credentials.api_key, credentials.stripe_webhook_secret, books)
        await program.prepare()
        # Whatever is made at first use is made now.
        await program.lifecycles(8)
        await bare.lifecycles(8)
        yield Sides(servers, sizes, say, client, program, bare, worker, starter)
        await program.close()
