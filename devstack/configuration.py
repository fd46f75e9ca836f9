"""What a stack consists of, and with which command and environment each of its programs runs.

A setting that is in the environment already wins over the stack's own. Each program is given only the settings that its
own settings class knows: the worker gets no API keys, the starter no password of the schema's owner.
"""

import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict
from pydantic_settings import BaseSettings
from temporalio.envconfig import ClientConfig

from devstack.credentials import Credentials, write_private
from devstack.errors import StackError
from devstack.ports import LOOPBACK
from devstack.postgres import Account, EmbeddedPostgres
from devstack.temporal import dev_server_command
from runtime.settings import PROJECT, MigrationSettings, StarterSettings, TemporalSetupSettings, WorkerSettings
from workflows.messages import SEARCH_ATTRIBUTES

PROGRAMS = ("postgres", "temporal", "worker", "starter")
"""In the order of their start; they are stopped in the opposite one."""

SIGNUP_URL = "https://kallyai.example/signup"
"""Where a visitor is sent to; nobody fetches it in here."""

_OURS = ("REFERRALS_", "TEMPORAL_")


class StackConfiguration(BaseModel):
    """The choices of one start: where the data is, which ports, and which of the servers are the stack's own."""

    model_config = ConfigDict(frozen=True)

    data: Path
    port: int = 8000
    temporal_port: int = 7233
    ui_port: int = 8233
    postgres_port: int = 5433
    metrics_port: int = 9464
    temporal_binary: Path | None = None
    own_postgres: bool = True
    own_temporal: bool = True

    @classmethod
    def read(cls, data: Path) -> Self:
        """The configuration that the stack in this folder was last started with."""
        return cls.model_validate_json((data / "run" / "stack.json").read_text(encoding="utf-8"))

    def write(self) -> None:
        """Keep it for the launcher, which starts each program anew as often as the supervisor asks."""
        (self.data / "run").mkdir(exist_ok=True)
        write_private(self.data / "run" / "stack.json", self.model_dump_json(indent=2) + "\n")

    @cached_property
    def credentials(self) -> Credentials:
        """The stack's secrets, made at its first start."""
        return Credentials.load(self.data / "secrets.json")

    @cached_property
    def postgres(self) -> EmbeddedPostgres:
        """The stack's own database server."""
        return EmbeddedPostgres(self.data / "postgres", self.postgres_port, self.credentials)

    @property
    def programs(self) -> tuple[str, ...]:
        """Those that this stack starts, in order."""
        left_out = {"postgres": not self.own_postgres, "temporal": not self.own_temporal}
        return tuple(name for name in PROGRAMS if not left_out.get(name))


def names_a_temporal(environment: Mapping[str, str]) -> bool:
    """Whether the environment says which Temporal to use: by address, or by a profile or file that has one."""
    if environment.get("TEMPORAL_ADDRESS"):
        return True
    if not (environment.get("TEMPORAL_PROFILE") or environment.get("TEMPORAL_CONFIG_FILE")):
        return False
    try:
        config = ClientConfig.load_client_connect_config(override_env_vars=dict(environment))
    except RuntimeError as error:
        raise StackError(f"TEMPORAL_PROFILE or TEMPORAL_CONFIG_FILE: {error}") from None
    return bool(config.get("target_host"))


class Environments:
    """The environment of each program, made from the surrounding one and the stack's own settings."""

    def __init__(self, stack: StackConfiguration, surrounding: Mapping[str, str]) -> None:
        """Take both; the surrounding one is not changed."""
        self._stack = stack
        self._surrounding = dict(surrounding)  # the SDK takes no other mapping

    @property
    def settings(self) -> dict[str, str]:
        """Every setting of every program, for composing the rest: not to be handed to any of them as a whole."""
        stack, secrets = self._stack, self._stack.credentials
        own = {
            "REFERRALS_API_KEYS": secrets.api_key,
            "REFERRALS_STRIPE_WEBHOOK_SECRETS": secrets.stripe_webhook_secret,
            "REFERRALS_TOKEN_SECRETS": secrets.token_secret,
            "REFERRALS_IDENTITY_HASH_KEY": secrets.identity_hash_key,
            "REFERRALS_PUBLIC_URL": f"http://{LOOPBACK}:{stack.port}",
            "REFERRALS_SIGNUP_URL": SIGNUP_URL,
            "REFERRALS_HOST": LOOPBACK,
            "REFERRALS_METRICS_ADDRESS": f"{LOOPBACK}:{stack.metrics_port}",
        }
        if stack.own_temporal:
            own["REFERRALS_UI_URL"] = f"http://{LOOPBACK}:{stack.ui_port}"
        given = {name: value for name, value in self._surrounding.items() if name.startswith("REFERRALS_") and value}
        if self._surrounding.get("REFERRALS_METRICS_ADDRESS") == "":
            given["REFERRALS_METRICS_ADDRESS"] = ""  # the way to turn it off
        # What the options decide, with the environment as their default.
        decided = {"REFERRALS_PORT": str(stack.port)}
        if stack.own_postgres:
            decided["REFERRALS_DATABASE_URL"] = stack.postgres.app_url
            decided["REFERRALS_MIGRATION_DATABASE_URL"] = stack.postgres.owner_url
        return {**own, **given, **decided}

    @property
    def temporal(self) -> dict[str, str]:
        """How Temporal is reached."""
        given = {name: value for name, value in self._surrounding.items() if name.startswith("TEMPORAL_")}
        if not self._stack.own_temporal:
            return given
        return {
            "TEMPORAL_ADDRESS": f"{LOOPBACK}:{self._stack.temporal_port}",
            "TEMPORAL_NAMESPACE": self.namespace,
            # An empty one: the address of our server with the TLS of the user's default profile would lead nowhere.
            "TEMPORAL_CONFIG_FILE": str(self._stack.data / "run" / "temporal.toml"),
        }

    @property
    def namespace(self) -> str:
        """The namespace that the referrals run in."""
        if self._stack.own_temporal:
            return self._surrounding.get("TEMPORAL_NAMESPACE") or "default"
        config = ClientConfig.load_client_connect_config(override_env_vars=self._surrounding)
        return config.get("namespace") or "default"

    @property
    def temporal_address(self) -> str:
        """Host and port of the Temporal server."""
        return ClientConfig.load_client_connect_config(override_env_vars=self.temporal).get("target_host", "")

    @property
    def ui_url(self) -> str:
        """The Web UI; empty if the Temporal server is not the stack's own and nobody said where its UI is."""
        return self.settings.get("REFERRALS_UI_URL") or self._surrounding.get("TEMPORAL_UI_URL", "")

    @property
    def worker(self) -> dict[str, str]:
        """For `python worker.py`."""
        return {**self._rest, **self._settings_of(WorkerSettings), **self.temporal}

    @property
    def starter(self) -> dict[str, str]:
        """For `python -m starter`."""
        return {**self._rest, **self._settings_of(StarterSettings), **self.temporal}

    @property
    def migrate(self) -> dict[str, str]:
        """For `referrals migrate`."""
        return {**self._rest, **self._settings_of(MigrationSettings)}

    @property
    def setup_temporal(self) -> dict[str, str]:
        """For `referrals setup-temporal`."""
        return {**self._rest, **self._settings_of(TemporalSetupSettings), **self.temporal}

    @property
    def server(self) -> dict[str, str]:
        """For the Temporal server: nothing of ours."""
        return self._rest

    @property
    def _rest(self) -> dict[str, str]:
        rest = {name: value for name, value in self._surrounding.items() if not name.startswith(_OURS)}
        if self._stack.own_postgres:
            # libpq's own variables are meant for another server.
            rest = {name: value for name, value in rest.items() if not name.startswith("PG")}
        return {**rest, "PYTHONUNBUFFERED": "1"}

    def _settings_of(self, settings: type[BaseSettings]) -> dict[str, str]:
        known = {f"REFERRALS_{name.upper()}" for name in settings.model_fields}
        return {name: value for name, value in self.settings.items() if name in known}


class Program(BaseModel):
    """How a program is run: its command, all of its environment, where, and whom it runs as (None: as ourselves)."""

    command: list[str]
    environment: dict[str, str]
    folder: Path = PROJECT
    account: Account | None = None


def program(name: str, stack: StackConfiguration, surrounding: Mapping[str, str]) -> Program:
    """How one of :data:`PROGRAMS` is run in this stack.

    Raises:
        StackError: its binary is missing.
    """
    environments = Environments(stack, surrounding)
    match name:
        case "postgres":
            postgres = stack.postgres
            return Program(
                command=postgres.command(),
                environment=postgres.environment,
                folder=Path("/"),
                account=postgres.account,
            )
        case "temporal":
            command = dev_server_command(
                # Relative: the server takes some characters of a path for parts of an address.
                Path("temporal.db"),
                stack.temporal_port,
                stack.ui_port,
                binary=stack.temporal_binary,
                namespace=environments.namespace,
                search_attributes=SEARCH_ATTRIBUTES,
            )
            return Program(command=command, environment=environments.server, folder=stack.data / "temporal")
        case "worker":
            return Program(command=[sys.executable, str(PROJECT / "worker.py")], environment=environments.worker)
        case "starter":
            return Program(command=[sys.executable, "-m", "starter"], environment=environments.starter)
        case _:
            raise StackError(f"the stack has no program {name!r}")
