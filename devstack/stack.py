"""The stack itself: brings its parts up in order, each awaited by a real condition, and takes them down again."""

import asyncio
import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import urlsplit, urlunsplit

import httpx
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError

from devstack.configuration import PROGRAMS, Environments, StackConfiguration
from devstack.credentials import write_private
from devstack.errors import StackError, tail_of
from devstack.interruption import Interruption
from devstack.ports import LOOPBACK, require_free
from devstack.processes import last_pid
from devstack.supervision import Supervisor, kill_all, leftovers, stop_leftovers
from runtime.settings import PROJECT

READY_SECONDS = 90.0
"""How long one part may take to become ready. All of them together take a few seconds on an idle machine."""

_POLL_SECONDS = 0.1
_STARTS_BEFORE_GIVING_UP = 3


@dataclass(frozen=True)
class Part:
    """A running part of the stack, to be shown."""

    name: str
    address: str
    remark: str = ""


class Stack:
    """The servers and programs of one data folder; a context manager that leaves nothing running behind."""

    def __init__(
        self,
        configuration: StackConfiguration,
        interruption: Interruption,
        say: Callable[[str], None],
        surrounding: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the stack; nothing is started yet.

        Args:
            configuration: where, on which ports, with which servers.
            interruption: tells when somebody wants to stop.
            say: is told, in a line each, what is being done.
            surrounding: the environment whose settings win; by default this process's.
        """
        self.configuration = configuration
        self.environments = Environments(configuration, os.environ if surrounding is None else surrounding)
        self._surrounding = os.environ if surrounding is None else surrounding
        self._data = configuration.data
        self._interruption = interruption
        self._say = say
        self._supervisor = Supervisor(self._data, configuration.programs)
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        """Bring everything up, or nothing.

        Raises:
            StackError: something does not start; the message says what, and why.
            Interrupted: somebody asked to stop meanwhile.
        """
        try:
            self._up()
        except BaseException:
            self._down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything: starter, worker, Temporal, PostgreSQL."""
        self._down()

    def _up(self) -> None:
        configuration = self.configuration
        self._require_whole_settings()
        self._take_data_folder()
        self._stop_leftovers()
        self._require_ports()
        configuration.write()
        (self._data / "run" / "temporal.toml").touch()
        if configuration.own_postgres:
            self._say("preparing PostgreSQL")
            configuration.postgres.prepare()
        self._interruption.check()
        self._supervisor.start(self._surrounding)
        self._wait("the supervisor", self._supervisor.answers)
        self._start_servers()
        self._set_up_servers()
        self._start_programs()
        self._write_environment_file()

    def _down(self) -> None:
        if self._lock is None:
            return
        if self._supervisor.started:
            self._say("stopping")
        self._interruption.when_repeated(lambda: kill_all(self._data, self.configuration.programs))
        self._supervisor.stop()
        self._lock.close()
        self._lock = None

    def keep_up(self) -> None:
        """Stay until somebody asks to stop.

        Raises:
            Interrupted: somebody did.
            StackError: the supervisor has ended.
        """
        while True:
            self._supervisor.require_alive()
            self._interruption.sleep(0.5)

    @property
    def url(self) -> str:
        """The starter's address on this machine."""
        host = self.environments.settings["REFERRALS_HOST"]
        if host in ("0.0.0.0", "::"):  # noqa: S104 - nothing is bound here
            host = LOOPBACK
        return f"http://{f'[{host}]' if ':' in host else host}:{self.configuration.port}"

    @property
    def api_key(self) -> str:
        """A key that the starter accepts."""
        return _first(self.environments.settings["REFERRALS_API_KEYS"])

    @property
    def stripe_webhook_secret(self) -> str:
        """A secret with whose signature the starter accepts Stripe events."""
        return _first(self.environments.settings["REFERRALS_STRIPE_WEBHOOK_SECRETS"])

    @property
    def parts(self) -> list[Part]:
        """What runs, with its address; no passwords."""
        settings, given = self.environments.settings, "named in the environment"
        metrics = settings.get("REFERRALS_METRICS_ADDRESS")
        ui_url = self.environments.ui_url
        return [
            Part(
                "PostgreSQL",
                _without_password(settings["REFERRALS_DATABASE_URL"]),
                str(self.configuration.postgres.data) if self.configuration.own_postgres else given,
            ),
            Part(
                "Temporal",
                self.environments.temporal_address,
                f"namespace {self.environments.namespace}" + ("" if self.configuration.own_temporal else f", {given}"),
            ),
            *([Part("Temporal Web UI", ui_url)] if ui_url else []),
            Part("worker", f"http://{metrics}/metrics" if metrics else "no address: metrics are off"),
            Part("starter", self.url, f"the API is described at {self.url}/docs"),
        ]

    # Before anything runs

    def _require_whole_settings(self) -> None:
        given = self._surrounding
        if given.get("REFERRALS_MIGRATION_DATABASE_URL") and not given.get("REFERRALS_DATABASE_URL"):
            raise StackError(
                "REFERRALS_MIGRATION_DATABASE_URL is set without REFERRALS_DATABASE_URL: "
                "set both to use a database of your own, or neither to use the stack's"
            )

    def _take_data_folder(self) -> None:
        for folder in (self._data, self._data / "log", self._data / "run", self._data / "temporal"):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StackError(f"{folder} cannot be made: {error.strerror}") from None
        try:
            lock = (self._data / "run" / "lock").open("w", encoding="utf-8")
        except OSError as error:
            raise StackError(f"{self._data} is not ours to write to: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise StackError(
                f"a stack is running on {self._data} already: stop it first, or name another folder with --data"
            ) from None
        self._lock = lock

    def _stop_leftovers(self) -> None:
        # All of them: an earlier start may have had a server of its own where this one has none.
        left = leftovers(self._data, PROGRAMS)
        if left:
            self._say(f"stopping what a killed stack has left: {', '.join(left)}")
        stop_leftovers(self._data, PROGRAMS)

    def _require_ports(self) -> None:
        configuration, settings = self.configuration, self.environments.settings
        wanted: list[tuple[int, str, str, str]] = []
        if configuration.own_postgres:
            wanted.append((configuration.postgres_port, "PostgreSQL", "--postgres-port", LOOPBACK))
        if configuration.own_temporal:
            wanted.append((configuration.temporal_port, "Temporal", "--temporal-port", LOOPBACK))
            wanted.append((configuration.ui_port, "Temporal's Web UI", "--ui-port", LOOPBACK))
        metrics = settings["REFERRALS_METRICS_ADDRESS"]
        if metrics:
            option = "--metrics-port"
            if self._surrounding.get("REFERRALS_METRICS_ADDRESS"):
                option = "REFERRALS_METRICS_ADDRESS"
            host, _, port = metrics.rpartition(":")
            if not port.isdecimal():
                raise StackError(f"REFERRALS_METRICS_ADDRESS must look like {LOOPBACK}:9464, not {metrics}")
            wanted.append((int(port), "the worker's metrics", option, host.strip("[]") or LOOPBACK))
        host = settings["REFERRALS_HOST"]
        wanted.append((configuration.port, "the starter", "--port", host))
        users: dict[int, str] = {}
        for port_number, user, option, address in wanted:
            if port_number in users:
                raise StackError(
                    f"port {port_number} is wanted by {users[port_number]} and by {user}; "
                    f"choose another one for one of them, such as with {option}"
                )
            users[port_number] = user
            require_free(port_number, user, option, address)

    # Bringing up

    def _start_servers(self) -> None:
        configuration = self.configuration
        for name in ("postgres", "temporal"):
            if name in configuration.programs:
                self._supervisor.start_program(name)
        if configuration.own_postgres:
            self._say(f"waiting for PostgreSQL on port {configuration.postgres_port}")
            self._wait("PostgreSQL", configuration.postgres.answers, "postgres")
            configuration.postgres.provision()
        if configuration.own_temporal:
            self._say(f"waiting for Temporal on port {configuration.temporal_port}")
            self._wait("Temporal", self._temporal_answers, "temporal")

    def _set_up_servers(self) -> None:
        self._say("migrating the database, registering the search attributes")
        commands = {"migrate": self.environments.migrate, "setup-temporal": self.environments.setup_temporal}
        running: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name, environment in commands.items():
                with (self._data / "log" / f"{name}.log").open("wb") as log:
                    running[name] = subprocess.Popen(  # noqa: S603 - our own command
                        [sys.executable, "-m", "cli.main", name],
                        cwd=PROJECT,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
            for name, process in running.items():
                self._wait(f"`referrals {name}`", partial(_ended, process))
                if process.returncode != 0:
                    raise StackError(f"`referrals {name}` failed\n{tail_of(self._data / 'log' / f'{name}.log')}")
        finally:
            for process in running.values():
                if process.poll() is None:
                    process.kill()
                process.wait()

    def _start_programs(self) -> None:
        self._say("starting the worker and the starter")
        since = datetime.now(UTC)
        for name in ("worker", "starter"):
            self._supervisor.start_program(name)
        self._wait("the worker", lambda: self._worker_polls(since), "worker")
        self._wait("the starter", self._starter_is_ready, "starter")

    def _wait(self, what: str, condition: Callable[[], bool], program: str | None = None) -> None:
        """Wait for a condition, as long as the program that is to fulfil it does not end again and again."""
        deadline = time.monotonic() + READY_SECONDS
        starts: set[int] = set()
        log = self._data / "log" / f"{program}.log"
        while not condition():
            self._supervisor.require_alive()
            if program is not None:
                pid = last_pid(self._data, program)
                starts |= {pid} if pid is not None else set()
                if len(starts) >= _STARTS_BEFORE_GIVING_UP:
                    raise StackError(f"{what} does not start: it ended again and again\n{tail_of(log)}")
            if time.monotonic() > deadline:
                detail = f"\n{tail_of(log)}" if program is not None else ""
                raise StackError(f"{what} is not ready after {READY_SECONDS:.0f} seconds{detail}")
            self._interruption.sleep(_POLL_SECONDS)

    async def _connect(self) -> Client:
        config = ClientConfig.load_client_connect_config(override_env_vars=self.environments.temporal)
        return await Client.connect(**config)

    def _temporal_answers(self) -> bool:
        async def ask() -> bool:
            client = await self._connect()
            request = DescribeNamespaceRequest(namespace=client.namespace)
            await client.workflow_service.describe_namespace(request)
            return True

        with suppress(RuntimeError, RPCError):
            return asyncio.run(ask())
        return False

    def _worker_polls(self, since: datetime) -> bool:
        """Whether a worker has asked for work since then."""

        async def ask() -> bool:
            client = await self._connect()
            name = self.environments.settings.get("REFERRALS_TASK_QUEUE", "referrals")
            answer = await client.workflow_service.describe_task_queue(
                DescribeTaskQueueRequest(
                    namespace=client.namespace,
                    task_queue=TaskQueue(name=name),
                    task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
                )
            )
            return any(each.last_access_time.ToDatetime(UTC) >= since for each in answer.pollers)

        with suppress(RuntimeError, RPCError):
            return asyncio.run(ask())
        return False

    def _starter_is_ready(self) -> bool:
        try:
            # A proxy that the environment names has no business here.
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _write_environment_file(self) -> None:
        values = {
            "REFERRALS_URL": self.url,
            "REFERRALS_API_KEY": self.api_key,
            "REFERRALS_STRIPE_WEBHOOK_SECRET": self.stripe_webhook_secret,
            "REFERRALS_DATABASE_URL": self.environments.settings["REFERRALS_DATABASE_URL"],
            "TEMPORAL_ADDRESS": self.environments.temporal_address,
            "TEMPORAL_UI_URL": self.environments.ui_url,
        }
        lines = [f"{name}={shlex.quote(value) if value else ''}\n" for name, value in values.items()]
        write_private(self._data / "dev.env", "".join(lines))


def _ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def _first(values: str) -> str:
    return next((value.strip() for value in values.split(",") if value.strip()), "")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}{at}{host}"))


def data_folder(named: Path | None) -> Path:
    """The folder that a stack's data is kept in: the one that is named, or `.local` of the project."""
    return (named or PROJECT / ".local").absolute()
