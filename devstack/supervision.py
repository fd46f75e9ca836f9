"""Supervisor, which keeps the stack's programs running: its configuration, its start, its end."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import xmlrpc.client
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import SupervisorTransport

from devstack.errors import StackError, tail_of
from devstack.processes import find, forget, is_alive, remember, stop
from runtime.settings import PROJECT

NAME = "supervisord"
DATA_VARIABLE = "REFERRALS_DEV_DATA"
_PYTHON_VARIABLE = "REFERRALS_DEV_PYTHON"
_PROJECT_VARIABLE = "REFERRALS_DEV_PROJECT"
_SOCKET_VARIABLE = "REFERRALS_DEV_SOCKET"

_SOCKET_PREFIX = "referrals-dev-"

PATIENCE_SECONDS = {"postgres": 20, "temporal": 10, "worker": 25, "starter": 15}
"""How long each may take to stop before it is killed."""

# PostgreSQL takes SIGTERM as "once the last client has gone".
STOP_SIGNALS = {"postgres": signal.SIGINT}


def _section(name: str, priority: int) -> str:
    # No path stands in the file: a space, a `;` or a `%` in one would need quoting that differs from place to place.
    # They are relative to the data folder, in which the supervisor runs, or put in by the shell, which the launcher
    # replaces. Programs are started one by one, when what they need is ready, and started again as long as it takes.
    return f"""
[program:{name}]
command=/bin/sh -c 'cd "${_PROJECT_VARIABLE}" && exec "${_PYTHON_VARIABLE}" -m devstack.launch {name}'
priority={priority}
autostart=false
autorestart=true
startsecs=1
startretries=1000000
stopsignal={STOP_SIGNALS.get(name, signal.SIGTERM).name.removeprefix("SIG")}
stopwaitsecs={PATIENCE_SECONDS[name]}
killasgroup=true
redirect_stderr=true
stdout_logfile=log/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=1
"""


def configuration_text(names: Sequence[str]) -> str:
    """The configuration for these programs: the first is started first and stopped last."""
    # It may be root; programs that must not be are started as somebody else.
    user = "user=root\n" if os.geteuid() == 0 else ""
    return f"""[supervisord]
{user}nodaemon=true
silent=true
minfds=256
minprocs=32
logfile=log/{NAME}.log
logfile_maxbytes=10MB
logfile_backups=1
pidfile=run/{NAME}.pid
childlogdir=log

[unix_http_server]
file=%(ENV_{_SOCKET_VARIABLE})s
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
""" + "".join(_section(name, 10 * (place + 1)) for place, name in enumerate(names))


class Supervisor:
    """One supervisord and its programs. It has a session of its own: a Ctrl-C at the terminal does not reach it."""

    def __init__(self, data: Path, names: Sequence[str]) -> None:
        """Describe it; nothing is started yet."""
        self._data = data
        self._names = names
        self._log = data / "log" / f"{NAME}.log"
        self._process: subprocess.Popen[bytes] | None = None
        # A socket's path may have about a hundred characters; that of the data may well be longer.
        self._socket_folder: Path | None = None

    def start(self, environment: Mapping[str, str]) -> None:
        """Start it with no program running yet."""
        configuration = self._data / "run" / f"{NAME}.conf"
        configuration.write_text(configuration_text(self._names), encoding="utf-8")
        self._socket_folder = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir="/tmp"))
        (self._data / "run" / "socket").symlink_to(self._socket_folder)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(configuration)],
                cwd=self._data,
                env={
                    **environment,
                    DATA_VARIABLE: str(self._data),
                    _PYTHON_VARIABLE: sys.executable,
                    _PROJECT_VARIABLE: str(PROJECT),
                    _SOCKET_VARIABLE: str(self._socket),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        remember(self._data, NAME, self._process.pid)

    @property
    def started(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._process is not None

    @property
    def _socket(self) -> Path:
        if self._socket_folder is None:
            raise StackError("the supervisor was not started")
        return self._socket_folder / "s"

    def _call(self, method: str, *arguments: Any) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        try:
            with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        finally:
            transport.close()

    def answers(self) -> bool:
        """Whether it takes orders."""
        try:
            return bool(self._call("getState"))
        except (OSError, xmlrpc.client.Error):
            return False

    def require_alive(self) -> None:
        """Make sure that it runs.

        Raises:
            StackError: it ended, with the end of its log.
        """
        if self._process is None or self._process.poll() is not None:
            raise StackError(f"the supervisor of the programs has ended\n{tail_of(self._log)}")

    def start_program(self, name: str) -> None:
        """Start a program; from here on it is started again whenever it ends."""
        try:
            self._call("startProcess", name, False)
        except (OSError, xmlrpc.client.Error) as error:
            raise StackError(f"the supervisor does not start {name}: {error}") from None

    def stop(self) -> None:
        """Stop every program, the last started first, then the supervisor itself."""
        if self._process is not None:
            stop_leftovers(self._data, self._names)
            if self._process.poll() is None:  # the notes in the data folder are gone
                stop(psutil.Process(self._process.pid), patience_seconds=sum(PATIENCE_SECONDS.values()) + 5)
            self._process.wait()
            self._process = None
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            (self._data / "run" / "socket").unlink(missing_ok=True)
            self._socket_folder = None


def leftovers(data: Path, names: Sequence[str]) -> list[str]:
    """Which of the programs, the supervisor included, still run from an earlier start."""
    return [name for name in (NAME, *names) if find(data, name) is not None]


def stop_leftovers(data: Path, names: Sequence[str]) -> None:
    """Stop the supervisor and whatever it leaves, recognised by pid and start time; the last started goes first."""
    supervisor = find(data, NAME)
    if supervisor is not None:
        # It stops its programs one after the other, each within its time.
        stop(supervisor, signal.SIGTERM, sum(PATIENCE_SECONDS.values()) + 5)
    for name in reversed(names):
        process = find(data, name)
        if process is not None and is_alive(process):
            stop(process, STOP_SIGNALS.get(name, signal.SIGTERM), PATIENCE_SECONDS[name])
    for name in (NAME, *names):
        forget(data, name)
    link = data / "run" / "socket"
    if link.is_symlink():
        folder = link.readlink()
        if folder.name.startswith(_SOCKET_PREFIX):
            shutil.rmtree(folder, ignore_errors=True)
        link.unlink()


def kill_all(data: Path, names: Sequence[str]) -> None:
    """End everything at once, for who cannot wait: the supervisor first, so that it starts nothing again."""
    for name in (NAME, *reversed(names)):
        process = find(data, name)
        if process is not None:
            os.kill(process.pid, signal.SIGKILL)
