"""What `docs/security.md` says is shown, is shown by a test that exists."""

import ast
import re
from collections.abc import Iterator

import pytest

from runtime.settings import PROJECT, StarterSettings
from starter.server import Patience

DOCUMENT = (PROJECT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`(test_\w+)`", DOCUMENT))

THREATS = (
    "forged",
    "replayed",
    "future",
    "oversized",
    "enumeration of codes",
    "forged token",
    "token replayed",
    "token transplanted",
    "reading another account with an open session",
    "open redirect",
    "header injection",
    "log injection",
    "HTML injection",
    "SQL",
    "body without end",
    "never ends",
    "flood of clicks",
    "ring of members",
    "spending a minute twice",
)
"""What has to be named, each in a row of its own with the tests that show what stops it."""


def written_in(pattern: str) -> Iterator[str]:
    for file in sorted((PROJECT / "tests").glob(pattern)):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield node.name


def test_how_long_and_for_how_many_the_server_waits_is_what_the_document_says() -> None:
    by_default = Patience()

    said = (
        f"{by_default.head_seconds:.0f} seconds for the headers, {by_default.body_seconds:.0f} more for the body",
        f"| who does not take the answer | {by_default.reading_seconds:.0f} seconds |",
        f"| headers without end | {by_default.head_bytes / 1024:.0f} KiB |",
        f"{by_default.connections} for a process, or what its files allow, and {by_default.connections_of_one} of them",
    )
    assert not [words for words in said if words not in DOCUMENT]


def test_every_test_that_the_document_names_exists() -> None:
    assert len(NAMED) > 50
    assert not NAMED - set(written_in("test_*.py"))


def test_every_test_of_an_attack_is_named_in_the_document() -> None:
    written = set(written_in("test_security_*.py")) - set(written_in("test_security_document.py"))
    assert not written - NAMED


@pytest.mark.parametrize("threat", THREATS)
def test_every_threat_is_named_with_what_shows_that_it_is_stopped(threat: str) -> None:
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("|") and threat in line.split("|")[1]]
    assert rows
    for row in rows:
        assert re.search(r"`test_\w+` ?[|,]", row), row


def test_the_document_says_what_each_limit_is_unless_it_is_set() -> None:
    told = dict(re.findall(r"\| `REFERRALS_(LIMIT_\w+)` \| `([^`]+)` \|", DOCUMENT))
    settings = {name.upper(): field.default for name, field in StarterSettings.model_fields.items()}
    assert told == {name: value for name, value in settings.items() if name.startswith("LIMIT_")}
