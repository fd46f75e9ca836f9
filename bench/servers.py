"""What is measured: real servers, equally durable, and the real programs on them, each a process of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import psycopg

from devstack.configuration import Environments, StackConfiguration
from devstack.errors import StackError, tail_of
from devstack.ports import LOOPBACK, answers, free_port
from devstack.postgres import EmbeddedPostgres
from devstack.processes import stop
from devstack.temporal import dev_server_command
from ledger.migrate import migrate
from runtime.settings import PROJECT
from workflows.messages import SEARCH_ATTRIBUTES

CONNECTIONS = "300"
"""All sides together; nothing else of PostgreSQL's settings is changed, fsync least of all."""

READY_SECONDS = 60.0

CLICKS_OF_ONE_ADDRESS = "100000000/minute"
"""All visitors come from one address here: their clicks are counted as ever, and never too many."""


class Process:
    """A running program."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path, folder: Path) -> None:
        """Start it.

        Args:
            name: what it is called in messages.
            command: how it is started.
            environment: all of its environment.
            log: where what it says is appended to.
            folder: where it runs.
        """
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(  # noqa: S603 - our own commands
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._process = psutil.Process(self._popen.pid)

    @property
    def cpu_seconds(self) -> float:
        """How much it has computed since it was started."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    @property
    def memory(self) -> int:
        """How much memory it has, in bytes."""
        return int(self._process.memory_info().rss)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until it is ready.

        Raises:
            StackError: it ended, or took too long.
        """
        deadline = time.monotonic() + READY_SECONDS
        while not condition():
            if self._popen.poll() is not None:
                raise StackError(f"{self.name} has ended\n{tail_of(self.log)}")
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} is not ready after {READY_SECONDS:.0f} seconds\n{tail_of(self.log)}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, and wait until it has."""
        if self._popen.poll() is None:
            stop(self._process)
        self._popen.wait()


class Servers:
    """PostgreSQL and Temporal, with the programs that use them."""

    def __init__(self, data: Path) -> None:
        """Describe them; nothing is started yet."""
        self.data = data
        self.configuration = StackConfiguration(
            data=data,
            port=free_port(),
            temporal_port=free_port(),
            ui_port=free_port(),
            postgres_port=free_port(),
            metrics_port=free_port(),
        )
        ours = ("REFERRALS_", "TEMPORAL_", "DBOS")
        surrounding = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environments = Environments(self.configuration, surrounding)
        self.postgres = EmbeddedPostgres(
            data / "postgres",
            self.configuration.postgres_port,
            self.configuration.credentials,
            settings={"max_connections": CONNECTIONS},
        )
        self._stack = ExitStack()

    def __enter__(self) -> "Servers":
        """Start the servers.

        Raises:
            StackError: one of them does not start.
        """
        try:
            for folder in ("run", "log", "temporal"):
                (self.data / folder).mkdir(parents=True)
            (self.data / "run" / "temporal.toml").touch()
            self._stack.callback(self.postgres.destroy)
            self.postgres.start()
            migrate(self.database_url(owner=True))
            temporal = self._start_temporal()
            self._stack.callback(temporal.stop)
            temporal.wait_until(lambda: answers(self.configuration.temporal_port))
            self.temporal = temporal
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything that was started."""
        self._stack.close()

    def _start_temporal(self) -> Process:
        command = dev_server_command(
            Path("temporal.db"), self.configuration.temporal_port, search_attributes=SEARCH_ATTRIBUTES
        )
        return Process(
            "Temporal", command, self.environments.server, self.data / "log" / "temporal.log", self.data / "temporal"
        )

    def database_url(self, *, owner: bool = False) -> str:
        """Where SQLAlchemy finds the program's database, as the application's role or the schema's owner."""
        url = self.postgres.owner_url if owner else self.postgres.app_url
        return url.replace("postgresql://", "postgresql+psycopg://")

    def connect(self, *, owner: bool = True, database: str | None = None) -> psycopg.Connection:
        """A connection of psycopg's own to the program's database, or another one of the owner's."""
        url = self.postgres.owner_url if owner else self.postgres.app_url
        if database is not None:
            url = f"{url.rpartition('/')[0]}/{database}"
        return psycopg.connect(url, autocommit=True)

    @property
    def temporal_address(self) -> str:
        """Where Temporal is."""
        return f"{LOOPBACK}:{self.configuration.temporal_port}"

    def start(self, name: str, command: list[str], environment: Mapping[str, str]) -> Process:
        """Start a program of Python's, to be ended with the servers at the latest."""
        log = self.data / "log" / f"{name.replace(' ', '-')}.log"
        process = Process(name, [sys.executable, *command], environment, log, PROJECT)
        self._stack.callback(process.stop)
        return process

    def start_worker(self, *, wait: bool = True) -> Process:
        """The worker as it is deployed; its metrics tell when it has connected."""
        process = self.start("worker", [str(PROJECT / "worker.py")], self.environments.worker)
        port = self.configuration.metrics_port
        if wait:
            process.wait_until(lambda: polls(port))
        return process

    @property
    def starter_environment(self) -> dict[str, str]:
        """For `python -m starter` and what is compared with it."""
        return self.environments.starter | {"REFERRALS_LIMIT_CLICKS": CLICKS_OF_ONE_ADDRESS}

    def start_starter(self) -> Process:
        """The HTTP side as it is deployed."""
        process = self.start("starter", ["-m", "starter"], self.starter_environment)
        process.wait_until(lambda: ready(self.configuration.port))
        return process


def ready(port: int, path: str = "/readyz") -> bool:
    """Whether a starter has everything that it needs."""
    try:
        return httpx.get(f"http://{LOOPBACK}:{port}{path}", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


_plainly = httpx.Client(timeout=5, trust_env=False, verify=False)  # noqa: S501 - on this machine, without TLS


def counter(port: int, name: str, **labels: str) -> float:
    """What a worker's counter says, summed over what is not named; nothing while the worker is not there.

    It is asked again and again while the worker is measured, so it costs little: one connection, and the lines wanted.
    """
    try:
        text = _plainly.get(f"http://{LOOPBACK}:{port}/metrics").text
    except httpx.HTTPError:
        return 0.0
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = (line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in wanted))


def polls(port: int) -> bool:
    """Whether a worker has begun to ask Temporal for work."""
    return counter(port, "temporal_num_pollers") > 0


@contextmanager
def servers() -> Iterator[Servers]:
    """Servers in a folder of their own, on a disk, of which nothing is left."""
    data = Path(tempfile.mkdtemp(prefix="referrals-bench-"))
    # PostgreSQL runs as somebody else where root starts it.
    data.chmod(0o755)
    try:
        with Servers(data) as running:
            yield running
    finally:
        shutil.rmtree(data, ignore_errors=True)
