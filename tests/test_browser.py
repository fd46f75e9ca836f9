"""Where the tests' browser comes from, on machines of every kind."""

import stat
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from runtime.settings import PROJECT
from tests.browser import DEBIANS, Install, Machine, NoBrowserError, Step, Take, find_or_get, look, plan

PYTHON = Path("/venv/bin/python")
CHROME = Path("/opt/google/chrome/chrome")
APT = Path("/usr/bin/apt-get")

PLAYWRIGHTS_OWN = Install((("/venv/bin/python", "-m", "playwright", "install", "chromium"),))
PLAYWRIGHTS_OWN_AS_ROOT = Install((("/venv/bin/python", "-m", "playwright", "install", "--with-deps", "chromium"),))
DEBIANS_OWN = Install(
    (
        ("/usr/bin/apt-get", "update", "-q"),
        ("/usr/bin/apt-get", "install", "-y", "-q", "--no-install-recommends", *DEBIANS),
    )
)


@pytest.mark.parametrize(
    ("machine", "steps"),
    [
        (Machine(named="/my/chrome", installed=(CHROME,), apt_get=APT, root=True), [Take(Path("/my/chrome"))]),
        (Machine(installed=(CHROME,), python=PYTHON), [Take(CHROME), PLAYWRIGHTS_OWN]),
        (Machine(apt_get=APT, root=True, python=PYTHON), [DEBIANS_OWN, PLAYWRIGHTS_OWN_AS_ROOT]),
        (Machine(apt_get=APT, root=False, python=PYTHON), [PLAYWRIGHTS_OWN]),
        (Machine(apt_get=None, root=True, python=PYTHON), [PLAYWRIGHTS_OWN]),
    ],
    ids=["named", "installed", "Debian as root", "Debian as anybody", "another system as root"],
)
def test_an_installed_browser_then_debians_then_playwrights(machine: Machine, steps: list[Step]) -> None:
    assert plan(machine) == steps


def test_what_is_installed_is_found_by_its_name_and_in_playwrights_folder(tmp_path: Path) -> None:
    named = _program(tmp_path / "bin/google-chrome", "echo Google Chrome 150")
    playwrights = _program(tmp_path / "playwright/chromium-1200/chrome-linux64/chrome", "echo Chromium 150")
    environment = {"PATH": str(named.parent), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path / "playwright")}
    machine = look(environment)
    assert machine.installed[0] == named
    assert machine.installed[-1] == playwrights
    assert machine.apt_get is None
    assert look(environment | {"TEST_BROWSER": "/my/chrome"}).named == "/my/chrome"


def test_what_does_not_start_is_passed_over(tmp_path: Path) -> None:
    pointer = _program(tmp_path / "chromium-browser", "echo 'install the snap instead' >&2; exit 1")
    gone = tmp_path / "gone"
    chrome = _program(tmp_path / "chrome", "echo Google Chrome 150")
    assert find_or_get(lambda: Machine(installed=(gone, pointer, chrome))) == chrome


def test_what_is_not_there_is_installed(tmp_path: Path) -> None:
    chrome = tmp_path / "chrome"
    debian = _program(tmp_path / "apt-get", 'echo "$1" >> "$0.log"; echo E: no such package; exit 100')
    script = f"echo '#!/bin/sh\necho Chromium 150' > {chrome}; chmod +x {chrome}"
    python = _program(tmp_path / "python", script)

    def machine() -> Machine:
        return Machine(installed=(chrome,) if chrome.exists() else (), apt_get=debian, root=True, python=python)

    assert find_or_get(machine) == chrome
    assert (tmp_path / "apt-get.log").read_text().split() == ["update"], "a step that fails ends its way"


def test_where_none_can_be_had_it_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", uuid4().hex)
    pointer = _program(tmp_path / "chromium-browser", "echo 'install the snap instead' >&2; exit 1")
    python = _program(
        tmp_path / "python", 'echo >> "$0.log"; echo Error: the download failed; echo at somewhere; exit 1'
    )
    machine = Machine(installed=(pointer,), apt_get=tmp_path / "apt-get", root=True, python=python)
    with pytest.raises(NoBrowserError) as first:
        find_or_get(lambda: machine)
    said = str(first.value).splitlines()
    assert "need a browser" in said[0]
    assert said[1] == f"  - {pointer}: install the snap instead"
    assert said[2].startswith(f"  - {tmp_path}/apt-get update -q: ")
    assert "No such file" in said[2]
    assert said[3] == f"  - {python} -m playwright install --with-deps chromium: Error: the download failed"
    assert "TEST_BROWSER=" in said[4]

    with pytest.raises(NoBrowserError, match="the download failed"):
        find_or_get(lambda: machine)
    assert (tmp_path / "python.log").read_text() == "\n", "one run of the tests tries it once"


def test_a_named_browser_that_does_not_start_is_an_error_in_plain_words(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "tests.browser"],
        cwd=PROJECT,
        env={"PATH": "", "TEST_BROWSER": str(tmp_path / "chrome")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    assert f"{tmp_path}/chrome: " in answer.stderr
    assert "Install Chromium or Google Chrome" in answer.stderr


def _program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
