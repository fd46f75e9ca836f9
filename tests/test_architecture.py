"""The house: which way imports run, what happens on import (nothing), and what no file may mention."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from runtime.settings import PROJECT

LINTER = Path(sys.executable).parent / "lint-imports"
PYPROJECT = PROJECT / "pyproject.toml"
BESIDE_THE_PROGRAM = {"bench", "tests"}
"""They put the program together for their own ends, and nothing of it knows them."""

PACKAGES = sorted({init.parent.name for init in PROJECT.glob("[a-z]*/__init__.py")} - BESIDE_THE_PROGRAM)

BREACHES = {
    "arrows": ("runtime/logs.py", "import ledger.tables"),
    "program": ("program/plans.py", "import pydantic"),
    "billing": ("billing/facts.py", "import sqlalchemy"),
    "ledger": ("ledger/queries.py", "from temporalio import client"),
    "workflows": ("workflows/story.py", "import stripe"),
    "activities": ("activities/referral.py", "from sqlalchemy import select"),
    "telling": ("starter/app.py", "from activities.referral import LedgerActivities"),
    "client": ("activities/referral.py", "from workflows.client import ReferralRuns"),
    "runtime": ("runtime/temporal.py", "from workflows.client import ReferralRuns"),
    "insides": ("starter/services.py", "from workflows.story import details"),
    "steps": ("cli/main.py", "from workflows.activities import ReferralActivities"),
    "walk": ("devstack/walk.py", "import ledger.queries"),
}
"""For each contract an import that it must notice."""


def contracts() -> list[dict[str, Any]]:
    configured = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]
    return list(configured.get("contracts", []))


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the project in a folder."""
    return subprocess.run(  # noqa: S603
        [LINTER, "--no-cache", "--no-logo"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_arrows_run_one_way_only() -> None:
    checked = lint(PROJECT)

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(BREACHES)} kept, 0 broken" in checked.stdout


def test_every_contract_notices_what_it_forbids(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PYPROJECT, tmp_path)
    for file, breach in BREACHES.values():
        with (tmp_path / file).open("a", encoding="utf-8") as source:
            # Inside a function too: late imports are imports.
            source.write(f"\n\ndef _breach() -> None:\n    {breach}\n")

    checked = lint(tmp_path)

    names = {contract.get("id"): contract["name"] for contract in contracts()}
    assert set(names) == set(BREACHES), "each contract needs a breach here, and each breach its contract"
    kept = [contract for contract, name in names.items() if f"{name} BROKEN" not in checked.stdout]
    assert kept == [], checked.stdout + checked.stderr


def test_every_package_is_under_contract() -> None:
    configured = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]

    assert sorted(configured["importlinter"]["root_packages"]) == PACKAGES
    installed = configured["setuptools"]["packages"]
    assert sorted({package.partition(".")[0] for package in installed}) == PACKAGES
    assert configured["setuptools"]["py-modules"] == ["worker"]
    assert all((PROJECT / package.replace(".", "/") / "__init__.py").is_file() for package in installed)


def test_nothing_of_the_program_knows_its_tests_or_its_bench() -> None:
    known = {each for each in imports() if each.imported.partition(".")[0] in BESIDE_THE_PROGRAM}
    assert known == set()


@dataclass(frozen=True)
class Import:
    """One import: which module of ours, on which line, imports what."""

    importer: str
    line: int
    imported: str


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def sources() -> Iterator[Path]:
    """Everything that runs: the packages and the worker, not the tests."""
    for package in PACKAGES:
        yield from sorted((PROJECT / package).rglob("*.py"))
    yield from sorted(PROJECT.glob("*.py"))


@cache
def imports() -> tuple[Import, ...]:
    """All imports of our code, wherever they stand; ``from a import b`` counts as ``a`` and as ``a.b``."""
    found: list[Import] = []
    for path in sources():
        importer = module_name(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import():
                    names = [alias.name for alias in node.names]
                case ast.ImportFrom(level=0, module=str(module)):
                    names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
                case ast.ImportFrom():
                    pytest.fail(f"{path}:{node.lineno}: a relative import; name the package")
                case ast.Call(func=ast.Name(id="__import__") | ast.Attribute(attr="import_module")):
                    pytest.fail(f"{path}:{node.lineno}: an import that no contract sees")
                case _:
                    continue
            found += [Import(importer, node.lineno, name) for name in names]
    return tuple(found)


def importers_of(module: str) -> set[str]:
    return {
        found.importer for found in imports() if found.imported == module or found.imported.startswith(f"{module}.")
    }


def test_nobody_imports_the_worker() -> None:
    # The linter takes no top-level module as a root, so this stands here.
    assert "worker" in {module_name(path) for path in sources()}
    assert importers_of("worker") == set()


def test_only_the_worker_and_the_replay_import_the_workflows() -> None:
    assert importers_of("workflows.referral") == {"workflows.registry"}
    assert importers_of("workflows.upkeep") == {"workflows.registry"}
    assert importers_of("workflows.delivery") == {"workflows.registry"}
    assert importers_of("workflows.registry") == {"worker", "cli.replay"}


def test_activities_are_put_together_by_the_worker_alone() -> None:
    steps = {module for module in map(module_name, sources()) if module.startswith("activities.")}

    assert {name for step in steps - {"activities.telling"} for name in importers_of(step)} == {"worker"}


def test_the_starter_knows_workflows_by_their_messages_and_their_client() -> None:
    known = {found.imported for found in imports() if found.importer.startswith("starter")}
    modules = {".".join(name.split(".")[:2]) for name in known if name.split(".")[0] == "workflows"}

    assert modules - {"workflows"} == {"workflows.messages", "workflows.client"}


PURE = {"collections", "dataclasses", "datetime", "enum", "fractions", "hashlib", "hmac", "pathlib", "tomllib"} | {
    "ipaddress",
    "typing",
    "unicodedata",
}
"""What the rules are made of: nothing that knows the time, the network, chance or the environment."""


def test_the_rules_are_pure() -> None:
    foreign = [
        found
        for found in imports()
        if found.importer.partition(".")[0] == "program" and found.imported.partition(".")[0] not in PURE | {"program"}
    ]
    assert foreign == []

    clocks = {"now", "utcnow", "today", "fromtimestamp"}
    asked = [
        f"{path.name}:{node.lineno}"
        for path in sorted((PROJECT / "program").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in clocks
    ]
    assert asked == []


def test_the_rules_know_no_floats() -> None:
    floats = [
        f"{path.name}:{node.lineno}"
        for path in sorted((PROJECT / "program").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Name) and node.id == "float")
        or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div))
    ]
    assert floats == []


# Runs in a process of its own: imports everything and tells what our modules did besides.
IMPORT_EVERYTHING = '''
import importlib, os, sys, threading
from pathlib import Path

project, packages, modules = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3].split()
sys.path.insert(0, str(project))
seen = []


def note(what):
    """Write down what one of our modules does, itself or by a library that it calls; a library's own import may."""
    frame = sys._getframe(2)
    while frame and "importlib._bootstrap" not in frame.f_code.co_filename:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(project) and path.relative_to(project).parts[0] in packages:
            seen.append(f"{path.relative_to(project)}:{frame.f_lineno}: {what}")
            return
        frame = frame.f_back


def audit(event, arguments):
    if event.split(".")[0] in {"socket", "subprocess"}:
        note(event)
    if event in {"os.system", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.putenv", "os.unsetenv"}:
        note(event)


class Watched(os._Environ):
    """Notes when our own code reads it, or a settings class for it; libraries have switches of their own."""

    def _read(self):
        frame = sys._getframe(2)
        while frame.f_code.co_filename in {"<frozen os>", "<frozen _collections_abc>", os.__file__}:
            frame = frame.f_back
        reader = Path(frame.f_code.co_filename)
        if "pydantic_settings" in reader.parts or "site-packages" not in reader.parts:
            note("reads the environment")

    def __getitem__(self, key):
        self._read()
        return super().__getitem__(key)

    def __iter__(self):
        self._read()
        return super().__iter__()


import temporalio.envconfig

# This one reads the environment where Python does not see it.
for reader in (temporalio.envconfig.ClientConfig, temporalio.envconfig.ClientConfigProfile):
    for name in {"load", "load_client_connect_config"} & set(vars(reader)):
        setattr(reader, name, lambda *_, **__: note("reads the environment"))

os.environ.__class__ = Watched
sys.addaudithook(audit)
for module in modules:
    importlib.import_module(module)

import psutil

seen += [f"open: {connection}" for connection in psutil.Process().net_connections(kind="all")]
seen += [f"runs: {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread()]
print(*dict.fromkeys(seen), sep="\\n")
'''


def on_import(project: Path, packages: list[str], modules: list[str]) -> list[str]:
    """What modules do when they are imported, with nothing in the environment."""
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", IMPORT_EVERYTHING, str(project), " ".join(packages), " ".join(modules)],
        env={},
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_importing_connects_to_nothing_and_reads_no_environment() -> None:
    # Alembic runs its scripts itself, and their environment exists only then.
    modules = [name for name in map(module_name, sources()) if not name.startswith("ledger.migrations.")]

    assert len(modules) > 40
    assert on_import(PROJECT, [*PACKAGES, "worker.py"], modules) == [""]


FORBIDDEN_ON_IMPORT = {
    "environ.py": ("import os; HOME = os.environ.get('HOME')", "reads the environment"),
    "getenv.py": ("import os; HOME = os.getenv('HOME')", "reads the environment"),
    "all.py": ("import os; ALL = dict(os.environ)", "reads the environment"),
    "pydantic.py": ("from runtime.settings import MigrationSettings as S; S.load()", "reads the environment"),
    "temporal.py": ("from temporalio.envconfig import ClientConfig as C; C.load_client_connect_config()", "reads the"),
    "connect.py": ("import socket; socket.socket().connect_ex(('127.0.0.1', 9))", "socket.connect"),
    "library.py": ("import asyncio; asyncio.run(asyncio.sleep(0))", "socket.__new__"),
    "process.py": ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
}


def test_what_is_done_on_import_is_noticed(tmp_path: Path) -> None:
    culprits = tmp_path / "culprits"
    culprits.mkdir()
    for file, (statement, _) in FORBIDDEN_ON_IMPORT.items():
        (culprits / file).write_text(f"{statement}\n", encoding="utf-8")
    (culprits / "thread.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, name='busy', daemon=True).start()\n",
        encoding="utf-8",
    )

    noticed = on_import(tmp_path, ["culprits"], [f"culprits.{path.stem}" for path in culprits.iterdir()])

    for file, (_, what) in FORBIDDEN_ON_IMPORT.items():
        found = [line for line in noticed if line.startswith(f"culprits/{file}:1: {what}")]
        assert found, f"{file} was not noticed in {noticed}"
    assert "runs: busy" in noticed


def own_files() -> list[Path]:
    """Every text file of the project: not what is hidden, built or installed."""
    folders = [*PACKAGES, *sorted(BESIDE_THE_PROGRAM), "docs", "deploy", "requirements", ".ci"]
    found = [path for path in PROJECT.iterdir() if path.is_file() and not path.name.startswith(".")]
    for folder in folders:
        found += [path for path in (PROJECT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(found)


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


STANDARD_FOLDERS = {Path(name) for name in ("/", "/app", "/home", "/mnt", "/opt", "/srv", "/tmp", "/usr", "/var")}  # noqa: S108


def test_no_file_mentions_a_machine() -> None:
    # Somebody's home, and wherever this very checkout lies.
    places = [re.compile(r"(?<![\w.])/(?:home|Users)/[a-z]\w*|(?<![\w.])/root/\w|\b[A-Z]:\\\\Users\b")]
    places += [
        # A folder right below the root has a name that anybody's words may have: something must lie in it.
        re.compile(re.escape(str(folder)) + (r"(?![\w-])" if len(folder.parts) > 2 else r"/\w"))
        for folder in (PROJECT, PROJECT.parent)
        if folder not in STANDARD_FOLDERS
    ]
    files = own_files()
    mentions = [
        f"{path.relative_to(PROJECT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if any(place.search(line) for place in places)
    ]

    assert PROJECT / "worker.py" in files
    assert mentions == []


def test_requirements_come_from_no_particular_index() -> None:
    for path in (PROJECT / "requirements").glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        assert "--hash=sha256:" in text
        assert re.findall(r".*(?:://|--index|--extra-index|--find-links|--trusted-host).*", text) == []
