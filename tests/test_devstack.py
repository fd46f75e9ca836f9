"""The development stack: its servers, its programs, what it leaves behind (nothing)."""

import asyncio
import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client

import devstack.postgres
from devstack.configuration import Environments, StackConfiguration, names_a_temporal
from devstack.credentials import Credentials
from devstack.errors import StackError
from devstack.ports import LOOPBACK, free_port, require_free
from devstack.postgres import APP, OWNER, EmbeddedPostgres, wheel_binaries
from devstack.processes import find, forget, remember, stop
from devstack.supervision import NAME as SUPERVISOR
from devstack.temporal import dev_server_command, find_binary
from devstack.walk import BROWSER
from runtime.settings import PROJECT
from workflows.messages import SEARCH_ATTRIBUTES

PROGRAMS = ("postgres", "temporal", "worker", "starter")
AS_ROOT = os.geteuid() == 0
NOT_DURABLE = {"fsync": "off"}


def until(what: str, condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s until {what}"
        time.sleep(0.05)


@contextmanager
def open_folder(name: str = "data") -> Iterator[Path]:
    """A folder that every user of the machine may pass through, unlike pytest's own."""
    outer = Path(tempfile.mkdtemp(prefix="referrals-tests-", dir="/tmp"))
    outer.chmod(0o755)
    try:
        (outer / name).mkdir(mode=0o755)
        yield outer / name
    finally:
        shutil.rmtree(outer, ignore_errors=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where root's clusters go in this test, instead of a folder of the system."""
    with open_folder("elsewhere") as place:
        monkeypatch.setattr(devstack.postgres, "ELSEWHERE", (place,))
        yield place


@contextmanager
def sleeper(*command: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command or ("/bin/sleep", "600"))  # noqa: S603
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# Processes


def test_a_process_is_recognised_by_its_pid_and_its_start(tmp_path: Path) -> None:
    with sleeper() as process:
        remember(tmp_path, "worker", process.pid)
        found = find(tmp_path, "worker")
        assert found is not None
        assert found.pid == process.pid
        assert (tmp_path / "worker.pid").read_text() == f"{process.pid}\n"
        forget(tmp_path, "worker")
        assert find(tmp_path, "worker") is None
        assert not (tmp_path / "worker.pid").exists()


def test_another_process_that_was_given_the_pid_is_not_ours(tmp_path: Path) -> None:
    with sleeper() as process:
        remember(tmp_path, "worker", process.pid)
        details = tmp_path / "run" / "worker.json"
        known = json.loads(details.read_text())
        details.write_text(json.dumps({**known, "started": known["started"] - 60}))
        assert find(tmp_path, "worker") is None
        assert process.poll() is None


def test_a_process_that_has_ended_is_not_found_even_if_nobody_collected_it(tmp_path: Path) -> None:
    with sleeper() as process:
        remember(tmp_path, "worker", process.pid)
        os.kill(process.pid, signal.SIGKILL)
        until("it has ended", lambda: find(tmp_path, "worker") is None, 5)


def test_a_process_that_does_not_want_to_stop_is_killed() -> None:
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", ignore], stdout=subprocess.PIPE)  # noqa: S603
    assert process.stdout is not None
    process.stdout.readline()
    stop(psutil.Process(process.pid), patience_seconds=0.2)
    assert not _runs(process.pid)
    process.stdout.close()
    process.wait()


# Ports


def test_a_taken_port_is_named_with_its_holder_and_the_way_out() -> None:
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(StackError) as caught:
            require_free(port, "the starter", "--port")
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(port), "the starter", "--port", f"(pid {os.getpid()})"):
        assert part in message
    require_free(port, "the starter", "--port")


# Secrets


def test_secrets_are_made_once_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    first = Credentials.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Credentials.load(path) == first
    assert Credentials() != first
    assert first.api_key not in repr(first)


def test_a_secret_that_an_older_file_lacks_is_added_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    first = Credentials.load(path)
    known = json.loads(path.read_text())
    del known["token_secret"]
    path.write_text(json.dumps({**known, "of_a_newer_version": "kept"}))
    second = Credentials.load(path)
    assert second.api_key == first.api_key
    assert second.token_secret != first.token_secret
    assert json.loads(path.read_text())["of_a_newer_version"] == "kept"
    assert Credentials.load(path) == second


def test_damaged_secrets_are_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    path.write_text('["half')
    with pytest.raises(StackError, match="damaged"):
        Credentials.load(path)


# Environments


def _configuration(folder: Path, **changes: Any) -> StackConfiguration:
    return StackConfiguration(data=folder, **changes)


def test_what_the_environment_sets_wins(tmp_path: Path) -> None:
    own = Environments(_configuration(tmp_path), {})
    given = {
        "REFERRALS_API_KEYS": "one-of-their-own-keys",
        "REFERRALS_ATTRIBUTION_WINDOW": "30s",
        "REFERRALS_METRICS_ADDRESS": "",
        "REFERRALS_PUBLIC_URL": "",
    }
    environments = Environments(_configuration(tmp_path), given)
    assert environments.starter["REFERRALS_API_KEYS"] == "one-of-their-own-keys"
    assert environments.starter["REFERRALS_ATTRIBUTION_WINDOW"] == "30s"
    assert "REFERRALS_ATTRIBUTION_WINDOW" not in own.starter
    assert environments.worker["REFERRALS_METRICS_ADDRESS"] == "", "emptying it turns the metrics off"
    assert own.worker["REFERRALS_METRICS_ADDRESS"] == "127.0.0.1:9464"
    assert environments.starter["REFERRALS_PUBLIC_URL"] == "http://127.0.0.1:8000", "an empty value is none"


def test_every_program_gets_what_it_needs_and_no_more(tmp_path: Path) -> None:
    surrounding = {"PATH": "/bin", "REFERRALS_STRIPE_API_KEY": "sk_test", "PGPASSWORD": "theirs", "TEMPORAL_TLS": "1"}
    environments = Environments(_configuration(tmp_path), surrounding)
    secrets = environments.settings
    database = {secrets["REFERRALS_DATABASE_URL"], secrets["REFERRALS_MIGRATION_DATABASE_URL"]}
    starter = {
        secrets[f"REFERRALS_{name}"]
        for name in ("API_KEYS", "STRIPE_WEBHOOK_SECRETS", "STRIPE_API_KEY", "TOKEN_SECRETS", "IDENTITY_HASH_KEY")
    }
    everything = database | starter | {"theirs"}
    application, owner = secrets["REFERRALS_DATABASE_URL"], secrets["REFERRALS_MIGRATION_DATABASE_URL"]

    def known_to(environment: dict[str, str]) -> set[str]:
        return everything & set(environment.values())

    # Reconciliation reads from Stripe, and remembers customers as the starter does.
    shared = {secrets["REFERRALS_STRIPE_API_KEY"], secrets["REFERRALS_IDENTITY_HASH_KEY"]}
    assert known_to(environments.worker) == shared | {application}
    assert known_to(environments.starter) == starter | {application}
    assert known_to(environments.migrate) == database
    assert owner not in environments.starter.values()
    assert known_to(environments.setup_temporal) == set()
    assert known_to(environments.server) == set()
    assert environments.worker["PATH"] == "/bin"
    assert "TEMPORAL_TLS" not in environments.worker, "our server has none"
    elsewhere = Environments(_configuration(tmp_path), {"REFERRALS_TASK_QUEUE": "others"})
    for program in (elsewhere.worker, elsewhere.starter, elsewhere.setup_temporal):
        assert program["REFERRALS_TASK_QUEUE"] == "others", "all of them mean the same queue"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, False),
        ({"TEMPORAL_NAMESPACE": "other"}, False),
        ({"TEMPORAL_ADDRESS": ""}, False),
        ({"TEMPORAL_ADDRESS": "temporal.example:7233"}, True),
        ({"TEMPORAL_CONFIG_FILE": "{folder}/with.toml"}, True),
        ({"TEMPORAL_CONFIG_FILE": "{folder}/without.toml"}, False),
    ],
)
def test_whose_temporal_is_used(tmp_path: Path, environment: dict[str, str], named: bool) -> None:
    (tmp_path / "with.toml").write_text('[profile.default]\naddress = "temporal.example:7233"\n')
    (tmp_path / "without.toml").write_text('[profile.default]\nnamespace = "other"\n')
    environment = {name: value.format(folder=tmp_path) for name, value in environment.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert names_a_temporal(os.environ) is named


def test_the_temporal_server_is_durable_and_on_loopback() -> None:
    command = dev_server_command(Path("temporal.db"), 7233, 8233, search_attributes=SEARCH_ATTRIBUTES)
    line = " ".join(command)
    assert Path(command[0]).exists()
    for part in ("--ip 127.0.0.1", "--port 7233", "--ui-port 8233", "synchronous=FULL", "BonusExpiresAt=Datetime"):
        assert part in line
    assert "ReviewReasons=KeywordList" in line
    assert "--headless" in dev_server_command(Path("temporal.db"), 7233)


def test_a_temporal_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(StackError, match="no-such-temporal"):
        find_binary("no-such-temporal")
    assert find_binary("sh") == Path(shutil.which("sh") or "")


# PostgreSQL


def _server_user() -> int:
    return pwd.getpwnam("nobody").pw_uid if AS_ROOT else os.geteuid()


def test_postgres_takes_passwords_only_and_never_runs_as_root(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "postgres", free_port(), settings=NOT_DURABLE)
    try:
        server.start()
        assert server.pid is not None
        assert psutil.Process(server.pid).uids().effective == _server_user() != 0
        assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
        assert "trust" not in [line.split()[-1] for line in _hba_lines(server)]
        sockets = psutil.Process(server.pid).net_connections("all")
        assert [each.laddr for each in sockets if each.status == "LISTEN"] == [(LOOPBACK, server.port)]
        assert not [each for each in sockets if "PGSQL" in str(each.laddr)], "no socket of the file system"
        assert [path.name for path in server.directory.iterdir()] == ["data"], "no password is left lying about"
        for url in (server.owner_url, server.app_url, server.superuser_url()):
            wrong = url.replace(url.split(":")[2].partition("@")[0], "wrong")
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(wrong)
        log = server.log.read_text()
        assert server.credentials.postgres_app_password not in log
    finally:
        server.destroy()
    assert not server.directory.exists()


def _hba_lines(server: EmbeddedPostgres) -> list[str]:
    lines = (server.data / "pg_hba.conf").read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_the_roles_have_what_they_need_and_no_more(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.owner_url, autocommit=True) as owner:
        assert owner.execute("SELECT current_user, current_database()").fetchone() == (OWNER, "referrals")
        owner.execute("CREATE TABLE roles_are_tested (id integer)")
    with psycopg.connect(postgres.app_url, autocommit=True) as app:
        assert app.execute("SELECT current_user").fetchone() == (APP,)
        for statement in ("CREATE TABLE mine (id integer)", "SELECT * FROM roles_are_tested", "CREATE ROLE mine"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute(statement)
    postgres.create_database("of_others")
    with psycopg.connect(postgres.superuser_url("of_others"), autocommit=True) as superuser:
        superuser.execute("CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
        try:
            stranger = postgres.superuser_url("of_others").replace(
                f"postgres:{postgres.credentials.postgres_superuser_password}", "stranger:stranger"
            )
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(stranger)
        finally:
            superuser.execute("DROP ROLE stranger")


def test_a_cluster_survives_a_kill_and_finds_its_data(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "postgres", free_port(), settings=NOT_DURABLE)
    try:
        server.start()
        with psycopg.connect(server.owner_url) as connection:
            connection.execute("CREATE TABLE kept (minutes integer)")
            connection.execute("INSERT INTO kept VALUES (90)")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        # Its pid has gone to a program that is no PostgreSQL: as after the restart of a container.
        lock = server.data / "postmaster.pid"
        _, _, rest = lock.read_text().partition("\n")
        with _as_server_user() as stranger:
            lock.write_text(f"{stranger.pid}\n{rest}")
            server.start()
            assert stranger.poll() is None
        with psycopg.connect(server.owner_url) as connection:
            assert connection.execute("SELECT minutes FROM kept").fetchone() == (90,)
    finally:
        server.destroy()


@contextmanager
def _as_server_user() -> Iterator["subprocess.Popen[bytes]"]:
    """A process of the user that the server runs as; another user's would be no obstacle to it."""
    process = subprocess.Popen(["/bin/sleep", "600"], user=_server_user() if AS_ROOT else None)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_folder_is_not_opened_to_others_when_the_server_cannot_reach_it(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a checkout under /root: neither the data folder nor the programs are in reach of the server's user."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    package = wheel_binaries().parent.parent
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.exists():
            (closed / part.name).symlink_to(part)
    monkeypatch.setattr(devstack.postgres, "wheel_binaries", lambda: closed / package.name / "pginstall" / "bin")
    server = EmbeddedPostgres(closed / "postgres", free_port(), settings=NOT_DURABLE)
    try:
        server.start()
        assert server.pid is not None
        program = Path(psutil.Process(server.pid).exe())
        if AS_ROOT:
            assert (closed / "postgres").readlink().parent == elsewhere
            assert program.is_relative_to(elsewhere)
            assert program.stat().st_uid == 0, "what it runs is not its own to change"
        else:
            assert not (closed / "postgres").is_symlink(), "the user's own server reaches the user's own folder"
            assert program == wheel_binaries().resolve() / "postgres"
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        with psycopg.connect(server.owner_url) as connection:
            connection.execute("CREATE TABLE kept (minutes integer)")
        server.stop()
        again = EmbeddedPostgres(closed / "postgres", server.port, settings=NOT_DURABLE)
        try:
            again.start()
            with psycopg.connect(again.owner_url) as connection:
                assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        finally:
            again.stop()
    finally:
        server.destroy()
    assert _clusters(elsewhere) == []


def _clusters(elsewhere: Path) -> list[Path]:
    """All that is kept there but the programs, which all clusters share."""
    return [path for path in elsewhere.iterdir() if not path.name.startswith("programs-")]


def test_data_whose_folder_was_removed_does_not_pile_up(tmp_path: Path, elsewhere: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for _ in range(2):
        EmbeddedPostgres(closed / "postgres", free_port(), settings=NOT_DURABLE).prepare()
        shutil.rmtree(closed)
        closed.mkdir(mode=0o700)
    assert len(_clusters(elsewhere)) == (1 if AS_ROOT else 0)


AS_ORDINARY_USER = """
import json, os, shutil, sys
from pathlib import Path
import psutil, psycopg
import devstack.postgres as module
folder, port, uid = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if os.geteuid() == 0:
    # What the user needs, within the user's reach: this checkout may be root's alone.
    package = module.wheel_binaries().parent.parent
    for part in (package, package.with_name(package.name + ".libs")):
        if part.exists():
            shutil.copytree(part, folder / part.name)
    module.wheel_binaries = lambda: folder / package.name / "pginstall" / "bin"
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, uid, -1)
    os.setgroups([])
    os.setuid(uid)
server = module.EmbeddedPostgres(folder / "postgres", port, settings={"fsync": "off"}).start()
try:
    with psycopg.connect(server.app_url) as connection:
        role = connection.execute("SELECT current_user").fetchone()[0]
    print(json.dumps({
        "ours": os.geteuid(),
        "server": psutil.Process(server.pid).uids().effective,
        "owner": server.data.stat().st_uid,
        "role": role,
        "moved": server.directory.is_symlink(),
    }))
finally:
    server.destroy()
"""


def test_an_ordinary_user_simply_runs_it(folder: Path) -> None:
    user = _server_user()
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", AS_ORDINARY_USER, str(folder), str(free_port()), str(user)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ours": user, "server": user, "owner": user, "role": APP, "moved": False}


def test_a_password_that_does_not_fit_is_a_clear_error(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "postgres", free_port(), settings=NOT_DURABLE)
    try:
        server.prepare()
        (folder / "secrets.json").unlink()
        with pytest.raises(StackError, match=r"secrets\.json"):
            EmbeddedPostgres(folder / "postgres", server.port, settings=NOT_DURABLE).start()
    finally:
        server.destroy()


# The whole stack


class Run:
    """`referrals dev`, running."""

    def __init__(self, data: Path, *options: str, **settings: str) -> None:
        self.data = data
        self._output = data.parent / f"{data.name}.{time.monotonic_ns()}.out"
        surrounding = {
            name: value for name, value in os.environ.items() if not name.startswith(("REFERRALS_", "TEMPORAL_"))
        }
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "cli.main", "dev", "--data", str(data), *options],
                cwd=PROJECT,
                env={**surrounding, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def until_up(self) -> "Run":
        def up() -> bool:
            assert self.process.poll() is None, self.output
            return "Ctrl-C stops everything" in self.output

        until("the stack is up", up, 90)
        return self

    def pid(self, name: str) -> int:
        return int((self.data / f"{name}.pid").read_text())

    def pids(self) -> dict[str, int]:
        return {path.stem: int(path.read_text()) for path in self.data.glob("*.pid")}

    @property
    def environment(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in (self.data / "dev.env").read_text().splitlines())

    def is_ready(self) -> bool:
        try:
            answer = httpx.get(f"{self.environment['REFERRALS_URL']}/readyz", timeout=5, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    def end(self, how: signal.Signals = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout=90)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            running = self.pids()
            self.end()
            kill(running)


def ports() -> list[str]:
    chosen: set[int] = set()
    while len(chosen) < 5:
        chosen.add(free_port())
    names = ("--port", "--temporal-port", "--ui-port", "--postgres-port", "--metrics-port")
    return [part for name, port in zip(names, chosen, strict=True) for part in (name, str(port))]


def alive(pids: dict[str, int]) -> dict[str, int]:
    return {name: pid for name, pid in pids.items() if psutil.pid_exists(pid) and _runs(pid)}


def kill(pids: dict[str, int]) -> None:
    for pid in alive(pids).values():
        os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def stack() -> Iterator[Run]:
    """A stack without a walk, in a folder whose name has everything that a name can have."""
    with open_folder('it\'s 100% #1; für "uns"') as data, Run(data, "--no-walk", *ports()) as run:
        yield run.until_up()


def test_every_part_is_shown_with_its_address_and_no_secret(stack: Run) -> None:
    environment = stack.environment
    for part in ("PostgreSQL", "Temporal", "Temporal Web UI", "worker", "starter"):
        assert f"\n{part}: " in stack.output
    for name in ("REFERRALS_URL", "TEMPORAL_ADDRESS", "TEMPORAL_UI_URL"):
        assert environment[name] in stack.output
    secrets = json.loads((stack.data / "secrets.json").read_text()).values()
    assert not [secret for secret in secrets if secret in stack.output]
    assert "\x1b" not in stack.output
    assert httpx.get(environment["TEMPORAL_UI_URL"], trust_env=False).status_code == 200


def test_scripts_find_what_they_need(stack: Run) -> None:
    path = stack.data / "dev.env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    environment = stack.environment
    assert sorted(environment) == [
        "REFERRALS_API_KEY",
        "REFERRALS_DATABASE_URL",
        "REFERRALS_STRIPE_WEBHOOK_SECRET",
        "REFERRALS_URL",
        "TEMPORAL_ADDRESS",
        "TEMPORAL_UI_URL",
    ]
    with psycopg.connect(environment["REFERRALS_DATABASE_URL"]) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (APP,)
    headers = {"Authorization": f"Bearer {environment['REFERRALS_API_KEY']}"}
    url = f"{environment['REFERRALS_URL']}/v1/referrals/unknown"
    assert httpx.get(url, headers=headers, trust_env=False).status_code == 404
    assert httpx.get(url, trust_env=False).status_code == 401


def test_it_can_be_filled_with_members_whose_dashboards_open(stack: Run) -> None:
    def referrals(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "cli.main", *arguments, "--data", str(stack.data)],
            cwd=PROJECT,
            env={name: value for name, value in os.environ.items() if not name.startswith(("REFERRALS_", "TEMPORAL_"))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    filled = referrals("demo", "--members", "12")
    addresses = re.findall(r"http://127\.0\.0\.1:\d+/portal\?session=\S+", filled)
    assert len(addresses) == 3
    addresses.append(json.loads(referrals("portal", "demo1-0001", "--json"))["url"])
    assert len(set(addresses)) == 4
    for address in addresses:
        with httpx.Client(headers={"User-Agent": BROWSER}, trust_env=False, follow_redirects=True) as browser:
            assert browser.get(address).status_code == 200
        with httpx.Client(headers={"User-Agent": BROWSER}, trust_env=False, follow_redirects=True) as another:
            # An address opens once.
            assert another.get(address).status_code != 200


def test_each_pid_file_names_its_program_and_each_program_has_only_its_own_secrets(stack: Run) -> None:
    pids = stack.pids()
    assert sorted(pids) == sorted((*PROGRAMS, SUPERVISOR))
    marks = {"postgres": "postgres", "temporal": "start-dev", "worker": "worker.py", "starter": "starter"}
    secrets = json.loads((stack.data / "secrets.json").read_text())
    allowed = {
        "worker": {"postgres_app_password", "identity_hash_key"},
        "starter": {
            "postgres_app_password",
            "api_key",
            "stripe_webhook_secret",
            "token_secret",
            "identity_hash_key",
        },
    }
    for name, mark in marks.items():
        process = psutil.Process(pids[name])
        assert mark in " ".join(process.cmdline())
        values = " ".join(process.environ().values())
        assert {each for each, secret in secrets.items() if secret in values} == allowed.get(name, set())
    assert psutil.Process(pids["postgres"]).uids().effective == _server_user()


def test_programs_that_die_are_started_again_and_the_pid_files_follow(stack: Run) -> None:
    before = {name: stack.pid(name) for name in PROGRAMS}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    def all_anew() -> bool:
        now = {name: stack.pid(name) for name in PROGRAMS}
        return not set(now.values()) & set(before.values()) and alive(now) == now

    until("all have new pids", all_anew)
    until("the starter is ready again", stack.is_ready)


def test_a_second_stack_on_the_same_data_is_refused(stack: Run) -> None:
    with Run(stack.data, "--no-walk", *ports()) as second:
        assert second.process.wait(timeout=60) == 1
    assert "running" in second.output
    assert "--data" in second.output
    assert stack.is_ready()


def test_a_taken_port_is_refused_and_nothing_is_left_running(stack: Run, folder: Path) -> None:
    port = stack.environment["REFERRALS_URL"].rpartition(":")[2]
    with Run(folder / "second", "--no-walk", *ports(), "--port", port) as second:
        assert second.process.wait(timeout=60) == 1
    line = second.output.strip().splitlines()[-1]
    for part in (port, "starter", "--port", f"pid {stack.pid('starter')}"):
        assert part in line
    assert second.pids() == {}
    assert not (folder / "second" / "postgres").exists(), "it was seen before anything was begun"


def test_servers_that_the_environment_names_are_used_instead(stack: Run, folder: Path) -> None:
    server = StackConfiguration.read(stack.data).postgres
    server.create_database("second")
    temporal = stack.environment["TEMPORAL_ADDRESS"]
    settings = {
        "REFERRALS_DATABASE_URL": f"{server.app_url.rpartition('/')[0]}/second",
        "REFERRALS_MIGRATION_DATABASE_URL": f"{server.owner_url.rpartition('/')[0]}/second",
        "REFERRALS_API_KEYS": "a-key-of-their-own, and-another-one-of-theirs",
        "TEMPORAL_ADDRESS": temporal,
        "TEMPORAL_NAMESPACE": "second",
    }
    with Run(folder / "second", "--no-walk", *ports(), **settings) as run:
        run.until_up()
        assert sorted(run.pids()) == sorted((SUPERVISOR, "starter", "worker"))
        environment = run.environment
        assert environment["REFERRALS_DATABASE_URL"] == settings["REFERRALS_DATABASE_URL"]
        assert environment["TEMPORAL_ADDRESS"] == temporal
        assert environment["TEMPORAL_UI_URL"] == ""
        assert environment["REFERRALS_API_KEY"] == "a-key-of-their-own"
        assert not (folder / "second" / "postgres").exists()
        with psycopg.connect(environment["REFERRALS_DATABASE_URL"]) as connection:
            assert connection.execute("SELECT count(*) FROM referral").fetchone() == (0,)
        registered = asyncio.run(_search_attributes(temporal, "second"))
        assert {key.name for key in SEARCH_ATTRIBUTES} <= registered
        assert run.end() == 0
    assert stack.is_ready()


async def _search_attributes(address: str, namespace: str) -> set[str]:
    client = await Client.connect(address, namespace=namespace)
    answer = await client.operator_service.list_search_attributes(ListSearchAttributesRequest(namespace=namespace))
    return set(answer.custom_attributes)


def test_a_plan_that_is_not_sold_is_refused_before_anything_starts(folder: Path) -> None:
    with Run(folder / "data", "--plan", "gold") as run:
        assert run.process.wait(timeout=60) == 1
    assert run.output == "referrals dev: there is no plan 'gold': choose one of starter, pro, power\n"


def test_half_a_database_setting_is_refused(folder: Path) -> None:
    half = {"REFERRALS_MIGRATION_DATABASE_URL": "postgresql://owner@db.example/referrals"}
    with Run(folder / "data", "--no-walk", *ports(), **half) as run:
        assert run.process.wait(timeout=60) == 1
    assert "REFERRALS_DATABASE_URL" in run.output


def test_a_killed_stack_leaves_nothing_to_the_next_but_its_data(folder: Path) -> None:
    data, chosen = folder / "data", ports()
    left: dict[str, int] = {}
    try:
        with Run(data, "--no-walk", *chosen) as first:
            first.until_up()
            left = first.pids()
            socket_folder = (data / "run" / "socket").readlink()
            assert socket_folder.is_dir()
            secrets = (data / "secrets.json").read_text()
            with psycopg.connect(StackConfiguration.read(data).postgres.owner_url) as connection:
                connection.execute("CREATE TABLE kept (minutes integer)")
            # Both that could have cleaned up. The programs go on without them.
            first.process.kill()
            first.process.wait()
            os.kill(left[SUPERVISOR], signal.SIGKILL)
        orphans = {name: pid for name, pid in left.items() if name != SUPERVISOR}
        assert alive(orphans) == orphans

        with Run(data, "--no-walk", *chosen) as second:
            second.until_up()
            assert "stopping what a killed stack has left" in second.output
            assert alive(orphans) == {}
            assert not socket_folder.exists()
            assert (data / "secrets.json").read_text() == secrets
            with psycopg.connect(StackConfiguration.read(data).postgres.owner_url) as connection:
                assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
            running = second.pids()
            assert second.end(signal.SIGTERM) == 0
        assert alive(running) == {}
        assert second.pids() == {}
    finally:
        kill(left)


def test_ctrl_c_while_starting_leaves_nothing_running(folder: Path) -> None:
    with Run(folder / "data", "--no-walk", *ports()) as run:
        until("its servers are being started", lambda: (folder / "data" / "temporal.pid").exists())
        running = run.pids()
        assert SUPERVISOR in running
        run.end()
    assert alive(running) == {}
    assert run.pids() == {}
