"""The compose stack, against the Compose specification and against the real programs; no Docker is needed.

What would run in our containers is run here: the same commands with the same environment, in a copy of what the image
holds, on a real PostgreSQL and a real Temporal server. Only the addresses differ (`Here`).
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import venv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import yaml
from pydantic import SecretStr
from temporalio.envconfig import ClientConfigProfile

from devstack.ports import free_port
from devstack.postgres import EmbeddedPostgres
from devstack.temporal import find_binary
from program.signals import Handling, SignalPolicy
from runtime.settings import MigrationSettings, SettingsError, StarterSettings, WorkerSettings
from worker import GRACEFUL_SHUTDOWN

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docker-compose.temporal.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

JOBS = {"databases", "temporal-schema", "temporal-setup", "migrate"}
OURS = {"temporal-setup", "migrate", "starter", "worker"}
SETTINGS: dict[str, type[MigrationSettings | StarterSettings | WorkerSettings]] = {
    "migrate": MigrationSettings,
    "starter": StarterSettings,
    "worker": WorkerSettings,
}

REQUIRED = re.compile(r"\$\{(\w+):\?([^}]+)\}")
REFERENCE = re.compile(r"\$\{(\w+)(?:(:[?-])([^}]*))?\}|\$\$")


def given(name: str) -> str:
    """What somebody who follows docs/compose.md could set; different for every name."""
    return "https://example.com/" + name if name.endswith("_URL") else f"{name}-at-least-16-characters"


GIVEN = {name: given(name) for name, _ in REQUIRED.findall(FILE.read_text(encoding="utf-8"))}
"""Every variable that has to be set, with a value."""


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Put variables in as Compose does, as far as our file goes."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, operator, rest = match.groups()
        if values.get(name):
            return values[name]
        assert operator == ":-", f"{name} is not set: {rest}"
        return str(rest)

    return REFERENCE.sub(value, text)


def environment(service: str, values: Mapping[str, str] = GIVEN) -> dict[str, str]:
    """The environment that the compose file gives a service."""
    declared: dict[str, str | None] = SERVICES[service].get("environment", {})
    passed = {name: values.get(name) if text is None else text for name, text in declared.items()}
    return {name: interpolate(text, values) for name, text in passed.items() if text is not None}


def strings(node: object) -> Iterator[str]:
    """Every string of a part of the file, keys included."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from strings(key)
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)


def image(service: str) -> tuple[str, str]:
    name, _, tag = SERVICES[service]["image"].rpartition(":")
    return name, tag


# The file alone


def test_the_file_is_what_the_compose_specification_admits() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout


def test_every_service_is_known_to_this_test() -> None:
    servers = {"postgres", "temporal", "temporal-ui", "starter", "worker"}
    assert set(SERVICES) == JOBS | servers


@pytest.mark.parametrize("service", SERVICES)
def test_every_image_is_pinned_to_a_version(service: str) -> None:
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?(-[a-z]+)?", image(service)[1]), SERVICES[service]["image"]


def test_temporal_and_its_web_ui_are_the_versions_of_the_development_stack() -> None:
    said = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    versions = re.search(r"\(Server (\S+), UI (\S+)\)", said)
    assert versions, said
    assert image("temporal") == ("temporalio/server", versions[1])
    assert image("temporal-schema") == ("temporalio/admin-tools", versions[1])
    assert image("temporal-ui") == ("temporalio/ui", versions[2])


def test_postgresql_is_the_version_of_the_development_stack(cluster: EmbeddedPostgres) -> None:
    with psycopg.connect(cluster.superuser_url()) as connection:
        version = connection.info.parameter_status("server_version")
    for service in ("postgres", "databases"):
        name, tag = image(service)
        assert (name, tag.partition("-")[0]) == ("postgres", version)


@pytest.mark.parametrize("service", sorted(OURS))
def test_our_image_is_built_here_as_the_project_s_version(service: str) -> None:
    assert image(service) == (PROJECT["project"]["name"], PROJECT["project"]["version"])
    assert SERVICES[service]["build"] == "."
    assert SERVICES[service]["pull_policy"] == "build"


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_runs_with_as_little_as_it_needs(service: str) -> None:
    content = SERVICES[service]
    assert content["read_only"] is True
    assert content["cap_drop"] == ["ALL"]
    assert "cap_add" not in content
    assert "privileged" not in content
    assert content["security_opt"] == ["no-new-privileges:true"]
    assert content["user"].partition(":")[0] not in ("", "0", "root")


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_reaches_into_the_host(service: str) -> None:
    content = SERVICES[service]
    assert not content.keys() & {
        "devices",
        "ipc",
        "network_mode",
        "pid",
        "userns_mode",
        "uts",
        "cgroup_parent",
        "sysctls",
    }
    for volume in content.get("volumes", ()):
        if isinstance(volume, dict):
            assert volume["read_only"] is True, "what comes from the host cannot be written"
            assert volume["source"].startswith("./deploy/")
        else:
            assert re.fullmatch(r"[a-z-]+:/[a-z/]+", volume), "no folder of the host"


@pytest.mark.parametrize("service", SERVICES)
def test_what_goes_on_running_has_a_health_check_and_what_ends_has_none(service: str) -> None:
    content = SERVICES[service]
    if service in JOBS:
        assert content["restart"] == "no"
        assert "healthcheck" not in content
    else:
        assert content["restart"] == "unless-stopped"
        assert content["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("service", SERVICES)
def test_nobody_starts_before_what_is_needed_is_there(service: str) -> None:
    needed = SERVICES[service].get("depends_on", {})
    for other, how in needed.items():
        assert how == {"condition": "service_completed_successfully" if other in JOBS else "service_healthy"}
    everything = set(needed)
    for other in needed:
        everything |= set(SERVICES[other].get("depends_on", {}))
    for host in re.findall(r"@([a-z]+):|(?:^|\b)(temporal|postgres):\d+", "\n".join(environment(service).values())):
        assert set(filter(None, host)) <= everything


def test_every_port_is_published_on_loopback_only() -> None:
    published = {service: content["ports"] for service, content in SERVICES.items() if "ports" in content}
    assert set(published) == {"starter", "temporal", "temporal-ui"}
    for ports in published.values():
        for port in ports:
            assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+_HOST_PORT:-\d+\}:\d+", port)


def test_the_worker_can_be_scaled() -> None:
    assert not SERVICES["worker"].keys() & {"container_name", "ports", "hostname"}
    assert not any("container_name" in content for content in SERVICES.values())


def test_what_is_kept_is_kept_under_a_name() -> None:
    named = set()
    for content in SERVICES.values():
        for volume in content.get("volumes", []):
            if isinstance(volume, str):
                named.add(volume.partition(":")[0])
            else:
                assert (ROOT / volume["source"]).is_file()
                assert volume["read_only"] is True
    assert named == set(COMPOSE["volumes"]) == {"postgres-data"}
    # The folder that the image keeps its data in since PostgreSQL 18.
    assert SERVICES["postgres"]["volumes"] == ["postgres-data:/var/lib/postgresql"]


def test_programs_are_given_the_time_that_they_take_to_stop() -> None:
    assert SERVICES["worker"]["stop_grace_period"] == "1m"
    assert GRACEFUL_SHUTDOWN.total_seconds() < 60


# Secrets


def test_no_secret_has_a_default() -> None:
    for text in strings(COMPOSE):
        for name, operator, _ in REFERENCE.findall(text):
            if name:
                assert operator == (":-" if name.endswith("_HOST_PORT") else ":?"), text


@pytest.mark.parametrize("service", SERVICES)
def test_no_secret_stands_in_the_file(service: str) -> None:
    for name, text in SERVICES[service].get("environment", {}).items():
        if re.search(r"PASSWORD|PWD|SECRET|KEY", name):
            assert text is None or REQUIRED.fullmatch(text), name
        elif text is not None and "@" in text:
            assert re.fullmatch(r"postgresql://\w+:\$\{\w+:\?[^}]+\}@.*", text), name


def test_each_program_gets_only_the_secrets_of_its_own() -> None:
    holders: dict[str, set[str]] = {}
    for service in SERVICES:
        for name in REQUIRED.findall("\n".join(strings(SERVICES[service]))):
            holders.setdefault(name[0], set()).add(service)
    databases = {name: holders[name] for name in holders if name.endswith("PASSWORD")}
    assert databases == {
        "POSTGRES_PASSWORD": {"postgres", "databases"},
        "TEMPORAL_DB_PASSWORD": {"databases", "temporal-schema", "temporal"},
        "REFERRALS_OWNER_PASSWORD": {"databases", "migrate"},
        "REFERRALS_APP_PASSWORD": {"databases", "starter", "worker"},
    }
    # Reconciliation links customers to accounts as the starter does, and remembers them by the same key.
    shared = {"REFERRALS_IDENTITY_HASH_KEY"}
    assert all(holders[name] == {"starter", "worker"} for name in shared)
    assert all(holders[name] == {"starter"} for name in holders.keys() - databases.keys() - shared)


def test_the_documentation_names_every_variable() -> None:
    text = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")
    used = {name for name, _, _ in REFERENCE.findall("\n".join(strings(COMPOSE))) if name}
    used |= {
        name for content in SERVICES.values() for name, value in content.get("environment", {}).items() if value is None
    }
    assert used == set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text))


# Temporal's own configuration


@pytest.fixture(scope="module")
def template() -> str:
    """The configuration that a server of the pinned version makes out of its environment, as it holds it itself."""
    program = find_binary().read_bytes()
    start = program.index(b"# enable-template\nlog:")
    return program[start : program.index(b"pollInterval:", start)].decode()


def test_the_server_understands_every_variable_that_it_is_given(template: str) -> None:
    known = set(re.findall(r'env "(\w+)"', template))
    assert environment("temporal").keys() <= known


def test_the_schema_is_made_where_the_server_looks_for_it() -> None:
    server, schema = environment("temporal"), environment("temporal-schema")
    assert schema == {
        "SQL_PLUGIN": server["DB"],
        "SQL_HOST": server["POSTGRES_SEEDS"],
        "SQL_PORT": server["DB_PORT"],
        "SQL_USER": server["POSTGRES_USER"],
        "SQL_PASSWORD": server["POSTGRES_PWD"],
    }
    assert server["DBNAME"] in script_calls()[0]
    assert server["VISIBILITY_DBNAME"] in script_calls()[2]


def script_calls(fails_at: int = 0) -> list[str]:
    """The calls of Temporal's schema tool that the job makes, with a stand-in that can fail at one of them."""
    with tempfile.TemporaryDirectory() as folder:
        tool, calls = Path(folder, "temporal-sql-tool"), Path(folder, "calls")
        tool.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$(wc -l < {calls})" -ne {fails_at} ]\n')
        tool.chmod(0o755)
        content = SERVICES["temporal-schema"]
        command = [*content["entrypoint"], *(interpolate(part, {}) for part in content["command"])]
        done = subprocess.run(command, env={"PATH": f"{folder}:{os.defpath}"}, check=False)  # noqa: S603
        assert (done.returncode == 0) is (fails_at == 0)
        return calls.read_text().splitlines()


def test_the_schema_job_sets_up_and_updates_both_databases() -> None:
    versioned = "/etc/temporal/schema/postgresql/v12/{}/versioned"
    assert script_calls() == [
        "--database temporal setup-schema -v 0.0",
        f"--database temporal update-schema -d {versioned.format('temporal')}",
        "--database temporal_visibility setup-schema -v 0.0",
        f"--database temporal_visibility update-schema -d {versioned.format('visibility')}",
    ]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_the_schema_job_stops_where_a_step_fails(step: int) -> None:
    assert len(script_calls(fails_at=step)) == step


def test_the_server_finds_its_dynamic_configuration() -> None:
    (mount,) = SERVICES["temporal"]["volumes"]
    assert mount["target"] == environment("temporal")["DYNAMIC_CONFIG_FILE_PATH"]
    # An unknown name in it is only a warning in the server's log, so none comes in without a test of its own.
    assert yaml.safe_load((ROOT / mount["source"]).read_text(encoding="utf-8")) == {}


def test_everybody_looks_for_temporal_where_it_listens() -> None:
    server = environment("temporal")
    address = f"temporal:{server['FRONTEND_GRPC_PORT']}"
    # Another address than the wildcard would leave the published port and the health check without an answer.
    assert server["BIND_ON_IP"] == "0.0.0.0"  # noqa: S104
    assert SERVICES["temporal"]["ports"][0].endswith(f":{server['FRONTEND_GRPC_PORT']}")
    assert health_url("temporal").port == int(server["FRONTEND_HTTP_PORT"])
    ui = environment("temporal-ui")
    assert ui["TEMPORAL_ADDRESS"] == address
    assert SERVICES["temporal-ui"]["ports"][0].endswith(f":{ui['TEMPORAL_UI_PORT']}")
    assert health_url("temporal-ui").port == int(ui["TEMPORAL_UI_PORT"])
    for service in OURS - {"migrate"}:
        variables = {name: text for name, text in environment(service).items() if name.startswith("TEMPORAL_")}
        profile = ClientConfigProfile.load(disable_file=True, override_env_vars=variables)
        assert profile.address == address
        assert profile.namespace == ui["TEMPORAL_DEFAULT_NAMESPACE"]


def test_the_web_ui_understands_every_variable_that_it_is_given() -> None:
    # Of config/docker.yaml in the image.
    known = {"TEMPORAL_ADDRESS", "TEMPORAL_DEFAULT_NAMESPACE", "TEMPORAL_UI_PORT", "TEMPORAL_CORS_ORIGINS"}
    assert environment("temporal-ui").keys() <= known
    published = re.search(r"\$\{\w+:-\d+\}", SERVICES["temporal-ui"]["ports"][0])
    assert published
    origins = SERVICES["temporal-ui"]["environment"]["TEMPORAL_CORS_ORIGINS"].split(",")
    assert origins == [f"http://{host}:{published[0]}" for host in ("localhost", "127.0.0.1")]


def health_url(service: str) -> Any:
    (address,) = re.findall(r"http://127\.0\.0\.1:\d+/[\w/-]*", " ".join(SERVICES[service]["healthcheck"]["test"]))
    return urlsplit(address)


# Our settings


def only(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name in os.environ:
        if name.startswith(("REFERRALS_", "TEMPORAL_")):
            monkeypatch.delenv(name)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)


@pytest.mark.parametrize("service", SETTINGS)
def test_every_variable_is_a_setting_of_the_program_that_gets_it(service: str) -> None:
    fields = {f"REFERRALS_{name.upper()}" for name in SETTINGS[service].model_fields}
    # Those that Temporal's SDK reads are tried against it above.
    declared = {name for name in SERVICES[service]["environment"] if not name.startswith("TEMPORAL_")}
    assert declared <= fields


def test_setting_up_temporal_needs_no_setting_of_ours() -> None:
    assert environment("temporal-setup").keys() == {"TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE"}


@pytest.mark.parametrize("service", SETTINGS)
def test_each_program_is_given_what_it_cannot_run_without(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment(service)
    only(monkeypatch, variables)
    SETTINGS[service].load()
    for name, field_ in SETTINGS[service].model_fields.items():
        if field_.is_required():
            monkeypatch.delenv(f"REFERRALS_{name.upper()}")
            with pytest.raises(SettingsError, match=f"REFERRALS_{name.upper()}"):
                SETTINGS[service].load()


def test_what_is_optional_is_passed_on_when_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = {
        "REFERRALS_STRIPE_API_KEY": "rk_x",
        "REFERRALS_COOKIE_DOMAIN": "x",
        "REFERRALS_ATTRIBUTION_WINDOW": "9d",
        "REFERRALS_TRUSTED_PROXIES": "172.18.0.1",
        "REFERRALS_LIMIT_CLICKS": "7/second",
        "REFERRALS_LIMIT_UNKNOWN_CODES": "6/second",
        "REFERRALS_LIMIT_PORTAL_TOKENS": "5/second",
        "REFERRALS_LIMIT_API_KEYS": "off",
    }
    only(monkeypatch, environment("starter", {**GIVEN, **optional}))
    settings = StarterSettings.load()
    assert settings.stripe_api_key == SecretStr("rk_x")
    assert settings.cookie_domain == "x"
    assert settings.attribution_window.days == 9
    assert settings.trusted_proxies == ["172.18.0.1/32"]
    limits = (
        settings.limit_clicks,
        settings.limit_unknown_codes,
        settings.limit_portal_tokens,
        settings.limit_api_keys,
    )
    assert limits == ("7/second", "6/second", "5/second", "off")
    versioned = {"REFERRALS_DEPLOYMENT_NAME": "referrals", "REFERRALS_BUILD_ID": "7"}
    only(monkeypatch, environment("worker", {**GIVEN, **versioned}))
    assert (WorkerSettings.load().deployment_name, WorkerSettings.load().build_id) == ("referrals", "7")


def test_the_worker_is_told_whom_to_tell_and_nobody_else_knows_the_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = {
        "REFERRALS_DELIVERY_ENDPOINTS": "backend=https://backend.example/referrals",
        "REFERRALS_DELIVERY_SECRETS": "whsec_" + "c2lnbmluZw" * 4,
    }
    only(monkeypatch, environment("worker", {**GIVEN, **backend}))
    settings = WorkerSettings.load()
    assert settings.delivery_endpoints["backend"].get_secret_value() == "https://backend.example/referrals"
    assert settings.signing_secrets("backend") == [backend["REFERRALS_DELIVERY_SECRETS"]]
    for service in SERVICES.keys() - {"worker"}:
        assert not environment(service, {**GIVEN, **backend}).keys() & backend.keys()


def test_rule_10_the_worker_remembers_customers_by_the_same_key_as_the_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for program, settings in (("starter", StarterSettings), ("worker", WorkerSettings)):
        only(monkeypatch, environment(program, GIVEN))
        keys.append(settings.load().identity_hash_key)
    assert keys[0] == keys[1] is not None


def test_rule_19_the_worker_is_told_which_signs_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    signals = {
        "REFERRALS_STRIPE_API_KEY": "rk_x",
        "REFERRALS_SIGNAL_SAME_DEVICE": "hold",
        "REFERRALS_SIGNAL_DISPOSABLE_EMAIL": "mark",
        "REFERRALS_SIGNAL_MANY_SIGNUPS": "hold",
        "REFERRALS_SIGNAL_SIGNUPS_A_DAY": "7",
    }
    only(monkeypatch, environment("worker", {**GIVEN, **signals}))
    assert WorkerSettings.load().signals == SignalPolicy(
        same_card=True,
        same_device=Handling.HOLD,
        disposable_email=Handling.MARK,
        many_signups=Handling.HOLD,
        signups_a_day=7,
    )
    only(monkeypatch, environment("starter", {**GIVEN, **signals}))
    assert StarterSettings.load().signal_same_device is Handling.HOLD, "it keeps hashes only for a sign that is used"


def test_the_starter_listens_where_its_port_and_its_health_check_are() -> None:
    settings = environment("starter")
    assert settings["REFERRALS_HOST"] == "0.0.0.0"  # noqa: S104
    assert SERVICES["starter"]["ports"][0].endswith(f":{settings['REFERRALS_PORT']}")
    assert health_url("starter").port == int(settings["REFERRALS_PORT"])


def test_the_worker_s_health_check_asks_where_its_metrics_are() -> None:
    assert environment("worker")["REFERRALS_METRICS_ADDRESS"] == f"0.0.0.0:{health_url('worker').port}"


def test_each_program_works_as_its_own_role_in_the_application_s_database() -> None:
    roles = {}
    for service, name in (
        ("migrate", "MIGRATION_DATABASE_URL"),
        ("starter", "DATABASE_URL"),
        ("worker", "DATABASE_URL"),
    ):
        address = urlsplit(environment(service)[f"REFERRALS_{name}"])
        assert address.hostname == "postgres"
        roles[service] = (address.username, address.path)
    assert roles == {
        "migrate": ("referrals_owner", "/referrals"),
        "starter": ("referrals_app", "/referrals"),
        "worker": ("referrals_app", "/referrals"),
    }
    server = environment("temporal")
    assert server["POSTGRES_USER"] == "temporal"
    assert "referrals" not in (server["DBNAME"], server["VISIBILITY_DBNAME"])


# The image


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and what they are given, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def admitted() -> list[str]:
    """The paths that .dockerignore lets into the image."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "all is out but what is named"
    assert rules[-1] == "**/__pycache__"
    assert all(rule.startswith("!") for rule in rules[1:-1])
    return [rule.removeprefix("!") for rule in rules[1:-1]]


def test_the_image_holds_every_package_but_the_development_stack() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    wanted = {name.partition(".")[0] for name in setuptools["packages"]} - {"devstack"}
    wanted |= {f"{name}.py" for name in setuptools["py-modules"]}
    assert set(admitted()) == wanted | {"plans.toml", "requirements/runtime.txt"}
    assert all((ROOT / name).exists() for name in admitted())


def test_the_image_is_pinned_and_not_root_s() -> None:
    instructions = dockerfile()
    bases = [text.split()[0] for name, text in instructions if name == "FROM"]
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", bases[0])
    last = instructions[[name for name, _ in instructions].index("FROM", 1) :]
    users = [text for name, text in last if name == "USER"]
    assert users == ["10001:10001"]
    assert all(SERVICES[service]["user"] == users[-1] for service in OURS)
    (account,) = [text for name, text in last if name == "RUN"]
    assert "--gid 10001" in account
    assert "--uid 10001" in account
    # What runs cannot change itself: all of it is root's, and nothing gives whoever runs it more than he has.
    assert not re.search(r"--chown|--chmod|chown|chmod .*(\+s|[2467]\d{3})|sudo|setcap", "\n".join(t for _, t in last))
    # What the tools of the first stage made is all that comes over.
    assert [text.split()[0] for name, text in last if name == "COPY"] == ["--from=build", "--from=build"]


def test_nothing_is_installed_without_its_hash() -> None:
    (install,) = [text for name, text in dockerfile() if name == "RUN" and " install " in text]
    assert {"--require-hashes", "requirements/runtime.txt"} <= set(shlex.split(install))
    pinned = (ROOT / "requirements" / "runtime.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=\S)", pinned.strip())
    assert all("--hash=sha256:" in block for block in blocks if not block.startswith("#"))


def test_the_base_image_s_python_is_one_that_the_project_admits() -> None:
    (version,) = {tuple(map(int, re.findall(r"\d+", text)[:2])) for name, text in dockerfile() if name == "FROM"}
    oldest = tuple(map(int, re.findall(r"\d+", PROJECT["project"]["requires-python"])))
    assert version >= oldest


@dataclass
class Container:
    """A folder that holds what the image holds: the same sources, and of the installed packages only those."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def app(self) -> Path:
        return self.folder / "app"

    def build(self) -> None:
        for name in admitted():
            source, target = ROOT / name, self.app / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, target)
        venv.create(self.folder / "venv", with_pip=False, symlinks=True)
        (site,) = (self.folder / "venv").glob("lib/python*/site-packages")
        for line in (self.app / "requirements" / "runtime.txt").read_text(encoding="utf-8").splitlines():
            if not line[:1].isalnum():
                continue
            try:
                package = distribution(line.partition("==")[0])
            except PackageNotFoundError:
                assert ";" in line, line  # for another system
                continue
            for top in {path.parts[0] for path in package.files or [] if path.parts[0] not in ("..", "__pycache__")}:
                if not (site / top).exists():
                    (site / top).symlink_to(Path(str(package.locate_file(top))))
        # The script that the Dockerfile writes, with another Python in its first line.
        (written,) = [text for name, text in dockerfile() if name == "RUN" and "/bin/referrals" in text]
        parts = shlex.split(written)
        start = parts.index("%s\n" if "%s\n" in parts else r"%s\n") + 1
        lines = parts[start : parts.index(">")]
        assert lines[0] == "#!/opt/venv/bin/python"
        script = self.folder / "venv" / "bin" / "referrals"
        script.write_text("\n".join([f"#!{self.folder}/venv/bin/python", *lines[1:], ""]))
        script.chmod(0o755)
        (text,) = [text for name, text in dockerfile() if name == "ENV"]
        for part in shlex.split(text):
            name, _, value = part.partition("=")
            value = value.replace("$PATH", os.defpath).replace("/opt/venv", f"{self.folder}/venv")
            self.variables[name] = re.sub(r"^/app", str(self.app), value)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Container:
    container = Container(tmp_path_factory.mktemp("container"))
    container.build()
    return container


def test_the_console_script_is_the_project_s() -> None:
    module, _, name = PROJECT["project"]["scripts"]["referrals"].partition(":")
    (written,) = [text for kind, text in dockerfile() if kind == "RUN" and "/bin/referrals" in text]
    assert f"from {module} import {name}" in shlex.split(written)
    assert f"sys.exit({name}())" in shlex.split(written)


# The stack, run here


@dataclass
class Here:
    """The stack's programs on this machine: where a container has a name of its own, this has a port of loopback."""

    container: Container
    cluster: EmbeddedPostgres
    values: dict[str, str]
    temporal: int = field(default_factory=free_port)
    temporal_http: int = field(default_factory=free_port)
    ui: int = field(default_factory=free_port)
    starter: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)

    def moved(self, text: str) -> str:
        for there, here in (
            ("@postgres:5432", f"@127.0.0.1:{self.cluster.port}"),
            ("temporal:7233", f"127.0.0.1:{self.temporal}"),
            ("127.0.0.1:7243", f"127.0.0.1:{self.temporal_http}"),
            ("127.0.0.1:8080", f"127.0.0.1:{self.ui}"),
            ("127.0.0.1:8000", f"127.0.0.1:{self.starter}"),
            ("127.0.0.1:9464", f"127.0.0.1:{self.metrics}"),
            ("0.0.0.0:9464", f"127.0.0.1:{self.metrics}"),
        ):
            text = text.replace(there, here)
        return text

    def environment(self, service: str) -> dict[str, str]:
        variables = {name: self.moved(text) for name, text in environment(service, self.values).items()}
        if service == "starter":
            variables |= {"REFERRALS_PORT": str(self.starter), "REFERRALS_HOST": "127.0.0.1"}
        if service in ("postgres", "databases"):
            variables |= {"PGHOST": "127.0.0.1", "PGPORT": str(self.cluster.port)}
        return {**self.container.variables, **variables}

    def command(self, parts: list[str]) -> list[str]:
        programs = [self.container.folder / "venv" / "bin", self.cluster._binaries()]
        found = [folder / parts[0] for folder in programs if (folder / parts[0]).exists()]
        assert found, f"{parts[0]} is no program of the image"
        return [str(found[0]), *(self.moved(part) for part in parts[1:])]

    def run(self, service: str) -> subprocess.CompletedProcess[str]:
        """Run a job to its end."""
        command = self.command(SERVICES[service]["command"])
        for mount in SERVICES[service].get("volumes", []):
            command = [part.replace(mount["target"], str(ROOT / mount["source"])) for part in command]
        return self._run(command, self.environment(service))

    def healthy(self, service: str) -> bool:
        """The health check of one of our services or of PostgreSQL, as Docker would run it."""
        command = self.command(SERVICES[service]["healthcheck"]["test"][1:])
        return self._run(command, self.environment(service)).returncode == 0

    def _run(self, command: list[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603
            command, cwd=self.container.app, env=variables, capture_output=True, text=True, timeout=60, check=False
        )

    def start(self, service: str, log: Path) -> subprocess.Popen[bytes]:
        command = self.command(SERVICES[service]["command"])
        with log.open("wb") as output:
            return subprocess.Popen(  # noqa: S603
                command,
                cwd=self.container.app,
                env=self.environment(service),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


def answers(address: str) -> bool:
    """What `wget` makes of it."""
    try:
        return httpx.get(address, timeout=4).is_success
    except httpx.HTTPError:
        return False


def eventually(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"not in {seconds} s:\n{log.read_text()}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server as `initdb` leaves it: no role and no database of ours."""
    directory = Path(tempfile.mkdtemp(prefix="referrals-compose-"))
    directory.chmod(0o755)
    server = EmbeddedPostgres(directory / "postgres", free_port(), settings={"fsync": "off"}).start()
    try:
        with psycopg.connect(server.superuser_url(), autocommit=True) as connection:
            connection.execute("DROP DATABASE referrals")
            connection.execute("DROP ROLE referrals_owner")
            connection.execute("DROP ROLE referrals_app")
        yield server
    finally:
        server.destroy()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def bare(container: Container, cluster: EmbeddedPostgres) -> Here:
    """The stack before any job has run."""
    return Here(container, cluster, {**GIVEN, "POSTGRES_PASSWORD": cluster.credentials.postgres_superuser_password})


@pytest.fixture(scope="module")
def here(bare: Here) -> Here:
    """The stack with its roles and databases."""
    for _ in ("the first start", "and any later one"):
        done = bare.run("databases")
        assert done.returncode == 0, done.stderr
    return bare


def connect(here: Here, role: str, password: str, database: str) -> "psycopg.Connection[Any]":
    address = f"postgresql://{role}:{password}@127.0.0.1:{here.cluster.port}/{database}"
    return psycopg.connect(address, autocommit=True, connect_timeout=10)


ROLES = {
    "temporal": ("TEMPORAL_DB_PASSWORD", {"temporal", "temporal_visibility"}),
    "referrals_owner": ("REFERRALS_OWNER_PASSWORD", {"referrals"}),
    "referrals_app": ("REFERRALS_APP_PASSWORD", {"referrals"}),
}


@pytest.mark.parametrize("database", ["temporal", "temporal_visibility", "referrals", "postgres", "template1"])
@pytest.mark.parametrize("role", ROLES)
def test_each_role_reaches_its_own_databases_and_no_other(here: Here, role: str, database: str) -> None:
    secret, own = ROLES[role]
    if database in own:
        connect(here, role, here.values[secret], database).close()
    else:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            connect(here, role, here.values[secret], database)


@pytest.mark.parametrize("role", ROLES)
def test_no_role_of_a_program_is_mighty(here: Here, role: str) -> None:
    with psycopg.connect(here.cluster.superuser_url()) as connection:
        rights = connection.execute(
            "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
            " FROM pg_roles WHERE rolname = %s",
            [role],
        ).fetchone()
    assert rights == (False,) * 5


def test_temporal_s_role_can_make_what_its_schema_needs(here: Here) -> None:
    with connect(here, "temporal", here.values["TEMPORAL_DB_PASSWORD"], "temporal_visibility") as connection:
        connection.execute("CREATE EXTENSION btree_gin")
        connection.execute("CREATE TABLE schema_version (version_partition int)")
        connection.execute("DROP EXTENSION btree_gin")
        connection.execute("DROP TABLE schema_version")


def test_a_changed_password_is_taken_over_by_the_next_start(here: Here) -> None:
    before = here.values["REFERRALS_APP_PASSWORD"]
    changed = Here(here.container, here.cluster, {**here.values, "REFERRALS_APP_PASSWORD": "another-password"})
    assert changed.run("databases").returncode == 0
    try:
        connect(here, "referrals_app", "another-password", "referrals").close()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect(here, "referrals_app", before, "referrals")
    finally:
        assert here.run("databases").returncode == 0


@pytest.mark.parametrize("password", ["too-short", "with@sign-in-the-address", "it's-all-in-quotes", "x" * 20 + "\\"])
def test_a_password_that_would_break_an_address_is_refused(here: Here, password: str) -> None:
    broken = Here(here.container, here.cluster, {**here.values, "TEMPORAL_DB_PASSWORD": password})
    done = broken.run("databases")
    assert done.returncode != 0
    assert "TEMPORAL_DB_PASSWORD must be at least 16 characters" in done.stderr
    assert password not in done.stderr
    connect(here, "temporal", here.values["TEMPORAL_DB_PASSWORD"], "temporal").close()


def test_no_password_gets_into_the_server_s_log(here: Here) -> None:
    with psycopg.connect(here.cluster.superuser_url(), autocommit=True) as connection:
        connection.execute("ALTER ROLE postgres SET default_transaction_read_only = on")
    try:
        # Every statement that would set a password fails now.
        assert here.run("databases").returncode != 0
    finally:
        with psycopg.connect(here.cluster.superuser_url(), autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER ROLE postgres RESET default_transaction_read_only")
    log = here.cluster.log.read_text()
    assert not [name for name in GIVEN if here.values[name] in log]


def test_the_cluster_is_made_as_the_file_says_and_trusts_nobody(here: Here) -> None:
    folder = here.cluster.directory.resolve() / "as-in-the-file"
    arguments = environment("postgres")["POSTGRES_INITDB_ARGS"].split()
    command = [str(here.cluster._binaries() / "initdb"), "-D", str(folder), "--no-sync", *arguments]
    # Its parent is root's where root runs the test.
    if here.cluster.account is not None:
        folder.mkdir(mode=0o700)
        os.chown(folder, here.cluster.account.uid, here.cluster.account.gid)
    secret = folder.with_name("a-password")
    secret.write_text("a-password-to-begin-with")
    secret.chmod(0o644)
    done = here.cluster._run([*command, f"--pwfile={secret}"])
    assert done.returncode == 0, done.stdout
    rules = [line.split() for line in (folder / "pg_hba.conf").read_text().splitlines() if line[:1].isalpha()]
    assert rules
    assert {rule[-1] for rule in rules} == {"scram-sha-256"}


def test_postgresql_s_health_check_tells_whether_it_answers(here: Here) -> None:
    assert here.healthy("postgres")
    nobody = Here(here.container, EmbeddedPostgres(here.cluster.directory, free_port()), here.values)
    assert not nobody.healthy("postgres")


@pytest.fixture(scope="module")
def migrated(here: Here) -> Here:
    """The stack with the application's tables."""
    for _ in ("the first start", "and any later one"):
        done = here.run("migrate")
        assert done.returncode == 0, done.stderr
    return here


def test_the_application_s_role_works_with_the_tables_and_cannot_change_them(migrated: Here) -> None:
    with connect(migrated, "referrals_app", migrated.values["REFERRALS_APP_PASSWORD"], "referrals") as connection:
        found = connection.execute("SELECT tablename, tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert "account" in dict(found)
        assert set(dict(found).values()) == {"referrals_owner"}
        connection.execute("SELECT count(*) FROM account")
        for statement in ("DROP TABLE account", "ALTER TABLE account ADD x int", "CREATE TABLE x ()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


@pytest.fixture(scope="module")
def stack(migrated: Here, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """The stack with a Temporal server that has its namespace; the server is the development stack's."""
    folder = tmp_path_factory.mktemp("temporal")
    log = folder / "temporal.log"
    ports = {"--port": migrated.temporal, "--http-port": migrated.temporal_http, "--ui-port": migrated.ui}
    options = [part for option, port in ports.items() for part in (option, str(port))]
    with log.open("wb") as output:
        server = subprocess.Popen(  # noqa: S603
            [find_binary(), "server", "start-dev", "--ip", "127.0.0.1", "--db-filename", folder / "db", *options],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        healthy = migrated.moved(health_url("temporal").geturl())
        eventually(lambda: answers(healthy), server, log)
        yield migrated
    finally:
        server.kill()
        server.wait()


def test_temporal_and_its_web_ui_have_the_pages_of_their_health_checks(stack: Here) -> None:
    for service in ("temporal", "temporal-ui"):
        address = stack.moved(health_url(service).geturl())
        assert answers(address), address
        # Not the page that the Web UI shows for any address that it does not know.
        assert "text/html" not in httpx.get(address).headers["content-type"]


@pytest.fixture(scope="module")
def namespace(stack: Here) -> Here:
    """The stack as the programs find it: every job has run."""
    for _ in ("the first start", "and any later one"):
        done = stack.run("temporal-setup")
        assert done.returncode == 0, done.stderr
    return stack


def test_a_worker_that_does_not_ask_for_work_is_not_healthy(bare: Here) -> None:
    class Metrics(BaseHTTPRequestHandler):
        said = b"temporal_request 1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.said)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", bare.metrics), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert not bare.healthy("worker")
        Metrics.said = b'temporal_num_pollers{namespace="referrals"} 5'
        assert bare.healthy("worker")
        server.shutdown()


@pytest.mark.parametrize(
    ("service", "last_words"), [("starter", "Application shutdown complete"), ("worker", "worker stops")]
)
def test_each_program_starts_becomes_healthy_and_stops(
    namespace: Here, service: str, last_words: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert not namespace.healthy(service)
    process = namespace.start(service, log)
    try:
        eventually(lambda: namespace.healthy(service), process, log)
        process.send_signal(signal.SIGTERM)
        # Well within the stop_grace_period, after which Docker would kill it. uvicorn shuts down in good order and then
        # ends by the very signal.
        assert process.wait(timeout=25) in (0, -signal.SIGTERM), log.read_text()
        assert last_words in log.read_text()
    finally:
        process.kill()
        process.wait()
    assert not namespace.healthy(service)
