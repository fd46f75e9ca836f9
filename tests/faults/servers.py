"""The processes: PostgreSQL and Temporal under one supervisor, worker and starter under another, proxies in between."""

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

import psutil
import psycopg
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from devstack.configuration import StackConfiguration
from devstack.interruption import Interruption
from devstack.ports import LOOPBACK, free_port
from devstack.postgres import APP, DATABASE, Account, EmbeddedPostgres
from devstack.processes import find
from devstack.stack import Stack
from devstack.supervision import Supervisor
from runtime.settings import PROJECT
from tests.faults.wire import PostgresSpeaker, TemporalSpeaker, Wire

SERVERS = ("postgres", "temporal")
PROGRAMS = ("worker", "starter")
READY_SECONDS = 90.0

TMPFS_MEGABYTES = 4096
"""The most that the database may take, where it has a file system of its own in memory; only what is used is taken."""

SMALL_FILES = 65536
"""The longest file that PostgreSQL may write when its disk is made full in the other way, in bytes."""


class Disk(Protocol):
    """What PostgreSQL writes to, and how that becomes full."""

    name: str

    def fill(self) -> None:
        """Let there be no room."""
        ...

    def keep_full(self) -> None:
        """Let there be none for a server that was started since, either."""
        ...

    def free(self) -> None:
        """Let there be room again."""
        ...


class OwnFileSystem:
    """A file system in memory for the database alone, made as small as what is in it: a true ENOSPC."""

    name = "a file system of its own, made full"

    def __init__(self, folder: Path) -> None:
        """Mount it; fails where this process may not."""
        self._folder = folder
        folder.mkdir(parents=True)
        self._mount("-t", "tmpfs", "-o", f"size={TMPFS_MEGABYTES}m,mode=755", "tmpfs")

    def fill(self) -> None:
        """Let there be no room."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            status = os.statvfs(self._folder)
            used = (status.f_blocks - status.f_bfree) * status.f_frsize
            try:
                return self._mount("-o", f"remount,size={max(used, 1)}")
            except subprocess.CalledProcessError:
                # Something was written meanwhile: the kernel makes it no smaller than what is in it.
                if time.monotonic() > deadline:
                    raise

    def keep_full(self) -> None:
        """It stays full by itself."""

    def free(self) -> None:
        """Let there be room again."""
        self._mount("-o", f"remount,size={TMPFS_MEGABYTES}m")

    def unmount(self) -> None:
        """Let it go."""
        subprocess.run(["umount", "--lazy", str(self._folder)], check=False, capture_output=True)  # noqa: S603, S607

    def _mount(self, *options: str) -> None:
        subprocess.run(["mount", *options, str(self._folder)], check=True, capture_output=True)  # noqa: S603, S607


# It becomes the server's user only when it runs: that user may not reach the interpreter.
_LIMIT = """
import os, resource, sys
uid, gid, longest, *pids = map(int, sys.argv[1:])
if uid != os.geteuid():
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
for pid in pids:
    try:
        _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most if longest < 0 else longest, most))
    except ProcessLookupError:
        pass
"""


class LimitedFiles:
    """Where nothing may be mounted: the kernel lets PostgreSQL's processes write no file beyond a few kilobytes.

    The server hears EFBIG instead of ENOSPC, at the same calls. The log is what it cannot write first, so it goes down,
    and does not come up until there is room: as with a full disk that holds the log.
    """

    name = "a limit on what PostgreSQL may write (no file system could be mounted)"

    def __init__(self, processes: "Processes") -> None:
        """Limit the server's processes, whichever run."""
        self._processes = processes
        # Only a process of the same user may, without privileges; root's server runs as somebody else.
        self._account = Account.for_servers()

    def fill(self) -> None:
        """Let there be no room."""
        self._limit(SMALL_FILES)

    def keep_full(self) -> None:
        """Let there be none for a server that was started since, either."""
        self._limit(SMALL_FILES)

    def free(self) -> None:
        """Let there be room again."""
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, longest: int) -> None:
        pids = [str(process.pid) for process in self._processes.tree("postgres")]
        user = (self._account.uid, self._account.gid) if self._account else (os.geteuid(), os.getegid())
        subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-I", "-S", "-c", _LIMIT, *map(str, user), str(longest), *pids],
            check=True,
            capture_output=True,
        )


class Processes:
    """The four, found anew at every look: each may have been started again since."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """Know in which data folder each notes its pid."""
        self._folders = folders

    def one(self, name: str) -> psutil.Process | None:
        """The process that a supervisor started; none while it is being started again."""
        return find(self._folders[name], name)

    def tree(self, name: str) -> list[psutil.Process]:
        """The same with its children."""
        process = self.one(name)
        if process is None:
            return []
        try:
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal to all processes of a program or server; how many there were."""
        processes = self.tree(name)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
        return len(processes)

    def owner_of(self, port: int) -> str:
        """Which program speaks from a port; empty where it is none of them."""
        for name in PROGRAMS:
            process = self.one(name)
            with suppress(psutil.Error):
                if process and any(each.laddr[1:] == (port,) for each in process.net_connections("tcp4")):
                    return name
        return ""


class Servers:
    """Everything that runs, and how to reach it from outside, past the proxies."""

    def __init__(self, folder: Path, stripe_base: str, receiver_url: str, receiver_secret: str) -> None:
        """Describe it; nothing runs yet.

        Args:
            folder: everybody may pass through it; nothing is in it.
            stripe_base: where Stripe's API is.
            receiver_url: where the backend is told.
            receiver_secret: with whose signature.
        """
        self.folder = folder
        self.processes = Processes(dict.fromkeys(SERVERS, folder / "servers") | dict.fromkeys(PROGRAMS, folder / "own"))
        self._below = StackConfiguration(
            data=folder / "servers", postgres_port=free_port(), temporal_port=free_port(), ui_port=free_port()
        )
        for data in (self._below.data / "log", self._below.data / "run", self._below.data / "temporal"):
            data.mkdir(parents=True)
        self.postgres: EmbeddedPostgres = self._below.postgres
        self.to_postgres = Wire(self._below.postgres_port, self.processes.owner_of, PostgresSpeaker)
        self.to_temporal = Wire(self._below.temporal_port, self.processes.owner_of, TemporalSpeaker)
        self._supervisor = Supervisor(self._below.data, SERVERS)
        self._above = StackConfiguration(
            data=folder / "own", port=free_port(), metrics_port=free_port(), own_postgres=False, own_temporal=False
        )
        self._given = {
            "REFERRALS_STRIPE_API_KEY": "sk_test_only_the_tests_use_this",
            "REFERRALS_STRIPE_API_BASE": stripe_base,
            "REFERRALS_DELIVERY_ENDPOINTS": f"backend={receiver_url}",
            "REFERRALS_DELIVERY_SECRETS": receiver_secret,
        }
        self._stack: Stack | None = None
        self._file_system: OwnFileSystem | None = None
        self.disk: Disk = LimitedFiles(self.processes)

    @property
    def stack(self) -> Stack:
        """Worker and starter."""
        if self._stack is None:
            raise RuntimeError("the stack is not up")
        return self._stack

    @property
    def token_secret(self) -> str:
        """What signs the tokens of links."""
        return self._above.credentials.token_secret

    @property
    def postgres_log(self) -> Path:
        """Where PostgreSQL writes what it has to say."""
        return self._below.data / "log" / "postgres.log"

    @property
    def environment(self) -> dict[str, str]:
        """For operators' commands: the worker's."""
        return self.stack.environments.worker

    async def client(self) -> Client:
        """A client of Temporal of our own, past the proxies."""
        from workflows.payloads import DATA_CONVERTER

        return await Client.connect(f"{LOOPBACK}:{self._below.temporal_port}", data_converter=DATA_CONVERTER, lazy=True)

    def superuser(self) -> "psycopg.Connection[tuple[object, ...]]":
        """A connection of our own, past the proxies, that may do everything."""
        return psycopg.connect(self.postgres.superuser_url(DATABASE), autocommit=True, connect_timeout=5)

    def move_ledger_clock(self, seconds: float) -> None:
        """Let the ledger's clock be that much ahead of everybody else's, for every connection made from now on."""
        with self.superuser() as connection:
            connection.execute(f"ALTER ROLE {APP} SET referrals.clock_offset = '{seconds} seconds'")

    async def up(self, *, may_mount: bool = True) -> None:
        """Bring everything up."""
        await asyncio.to_thread(self._servers_up, may_mount)
        await self.to_postgres.open()
        await self.to_temporal.open()
        through = self.postgres.app_url.replace(f":{self._below.postgres_port}/", f":{self.to_postgres.port}/")
        nothing = self.folder / "temporal.toml"
        nothing.touch()
        surrounding = {
            name: value for name, value in os.environ.items() if not name.startswith(("REFERRALS_", "TEMPORAL_"))
        } | {
            "REFERRALS_DATABASE_URL": through,
            "REFERRALS_MIGRATION_DATABASE_URL": self.postgres.owner_url,
            "TEMPORAL_ADDRESS": f"{LOOPBACK}:{self.to_temporal.port}",
            "TEMPORAL_NAMESPACE": "default",
            "TEMPORAL_CONFIG_FILE": str(nothing),
            **self._given,
        }
        self._stack = Stack(self._above, Interruption(), lambda _: None, surrounding)
        await asyncio.to_thread(self._stack.__enter__)

    async def down(self) -> None:
        """Stop everything; nothing is left."""
        for name in (*PROGRAMS, *SERVERS):
            self.processes.signal(name, signal.SIGCONT)
        if self._stack is not None:
            await asyncio.to_thread(self._stack.__exit__, None, None, None)
        await self.to_postgres.close()
        await self.to_temporal.close()
        await asyncio.to_thread(self._supervisor.stop)
        if self._file_system is not None:
            self._file_system.unmount()

    def _servers_up(self, may_mount: bool) -> None:
        data = self._below.data
        if may_mount:
            with suppress(OSError, subprocess.CalledProcessError):
                self._file_system = self.disk = OwnFileSystem(self.postgres.directory)
        self._below.write()
        (data / "run" / "temporal.toml").touch()
        self.postgres.prepare()
        self._supervisor.start(os.environ)
        _wait("the supervisor", self._supervisor.answers)
        for name in SERVERS:
            self._supervisor.start_program(name)
        _wait("PostgreSQL", self.postgres.answers)
        self.postgres.provision()
        _wait("Temporal", lambda: asyncio.run(self._temporal_answers()))

    async def _temporal_answers(self) -> bool:
        with suppress(RuntimeError, RPCError):
            client = await self.client()
            await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace="default"))
            return True
        return False


def _wait(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} is not ready after {READY_SECONDS:.0f} seconds")
        time.sleep(0.1)


@asynccontextmanager
async def own_folder(kept: Path | None) -> AsyncIterator[Path]:
    """A folder that every user of the machine may pass through; removed at the end unless it is to be kept."""
    folder = await asyncio.to_thread(_make_folder)
    try:
        yield folder
    finally:
        if kept is not None:
            await asyncio.to_thread(_keep, folder, kept)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="referrals-faults-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


def _keep(folder: Path, kept: Path) -> None:
    """The logs of everybody, for whoever has to find out."""
    for name in ("servers", "own"):
        if (folder / name / "log").is_dir():
            shutil.copytree(folder / name / "log", kept / name, dirs_exist_ok=True)


__all__ = ["PROJECT", "Disk", "LimitedFiles", "OwnFileSystem", "Processes", "Servers", "own_folder"]
