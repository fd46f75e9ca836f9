"""A browser for the tests: one that is installed, or one that is got; `python -m tests.browser` says which.

What is done is decided by `plan` from what is known of the machine; `find_or_get` does it, once on a machine at a time.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.getting import one_at_a_time, reason
from tests.getting import run as carried_out

NAMED_BY = "TEST_BROWSER"
"""The environment variable that names the browser to take, and no other."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLACES = (
    "/usr/bin/chromium",
    "/usr/bin/google-chrome",
    "/usr/lib/chromium/chromium",
    "/opt/google/chrome/chrome",
    "/snap/bin/chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "~/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
PLAYWRIGHTS = (
    "chromium-*/chrome-linux*/chrome",
    "chromium-*/chrome-mac*/*.app/Contents/MacOS/*",
)
DEBIANS = ("chromium", "fonts-inter", "fonts-liberation")
"""Debian's browser, and fonts to see text in: without recommended packages it brings none."""

START_SECONDS = 30


class NoBrowserError(Exception):
    """There is no browser, and none could be got; says what was tried and what to do."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides where a browser comes from."""

    named: str = ""
    """What the environment names."""
    installed: tuple[Path, ...] = ()
    """Files that look like a browser, the likeliest first."""
    apt_get: Path | None = None
    root: bool = False
    python: Path = Path(sys.executable)
    """What Playwright is installed for."""


@dataclass(frozen=True, slots=True)
class Take:
    """Take a browser that is there, if it starts."""

    path: Path


@dataclass(frozen=True, slots=True)
class Install:
    """Install one, and look again."""

    commands: tuple[tuple[str, ...], ...]


Step = Take | Install


def plan(machine: Machine) -> list[Step]:
    """What to try on a machine, one after the other, until there is a browser."""
    if machine.named:
        return [Take(Path(machine.named).expanduser())]
    steps: list[Step] = [Take(path) for path in machine.installed]
    playwright: tuple[str, ...] = (str(machine.python), "-m", "playwright", "install")
    if machine.root and machine.apt_get:
        apt = str(machine.apt_get)
        install = (apt, "install", "-y", "-q", "--no-install-recommends", *DEBIANS)
        steps.append(Install(((apt, "update", "-q"), install)))
        # As root it can bring the libraries along that the browser needs.
        playwright += ("--with-deps",)
    steps.append(Install(((*playwright, "chromium"),)))
    return steps


def look(environment: Mapping[str, str] = os.environ) -> Machine:
    """What there is to know of this machine."""
    path = environment.get("PATH", "")
    apt_get = shutil.which("apt-get", path=path)
    return Machine(
        named=environment.get(NAMED_BY, ""),
        installed=tuple(dict.fromkeys(_installed(environment, path))),
        apt_get=Path(apt_get) if apt_get and Path("/etc/debian_version").exists() else None,
        root=os.geteuid() == 0,
    )


def _installed(environment: Mapping[str, str], path: str) -> Iterator[Path]:
    for name in NAMES:
        if found := shutil.which(name, path=path):
            yield Path(found)
    for place in PLACES:
        if (file := Path(place).expanduser()).is_file():
            yield file
    for folder in _playwrights_folders(environment):
        for pattern in PLAYWRIGHTS:
            yield from sorted(folder.glob(pattern), reverse=True)


def _playwrights_folders(environment: Mapping[str, str]) -> list[Path]:
    if own := environment.get("PLAYWRIGHT_BROWSERS_PATH"):
        return [Path(own)]
    home = Path.home()
    return [home / ".cache/ms-playwright", home / "Library/Caches/ms-playwright"]


def find_or_get(look: Callable[[], Machine] = look) -> Path:
    """A browser that starts.

    Args:
        look: gives what is known of the machine; asked again after each installation.

    Raises:
        NoBrowserError: there is none, and none could be got.
    """
    machine, tried = look(), dict[str, str]()
    if found := _take(machine, tried):
        return found
    installs = [step for step in plan(machine) if isinstance(step, Install)]
    if not installs:
        raise _none(tried)
    with one_at_a_time("browser") as notes:
        # Whoever had the lock before may have got one, or may have tried in vain for this very run of the tests.
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")
        failed_run, _, failure = notes.read_text().partition("\n")
        if run and failed_run == run:
            raise NoBrowserError(failure)
        if found := _take(look(), tried):
            return found
        for install in installs:
            if carried_out(install.commands, tried) and (found := _take(look(), tried)):
                return found
        error = _none(tried)
        notes.write_text(f"{run}\n{error}")
        raise error


def _take(machine: Machine, tried: dict[str, str]) -> Path | None:
    for step in plan(machine):
        if isinstance(step, Take):
            if (problem := _problem(step.path)) is None:
                return step.path
            tried[str(step.path)] = problem
    return None


def _problem(path: Path) -> str | None:
    """Why a file is no browser that starts; a package may leave a mere pointer to another way of installing."""
    try:
        answer = subprocess.run(  # noqa: S603
            [path, "--version"], capture_output=True, text=True, timeout=START_SECONDS, check=False
        )
    except OSError as error:
        return error.strerror or str(error)
    except subprocess.TimeoutExpired:
        return f"does not start within {START_SECONDS} seconds"
    if answer.returncode == 0 and "chrom" in answer.stdout.lower():
        return None
    return reason(answer.stderr or answer.stdout) or f"ended with status {answer.returncode}"


def _none(tried: Mapping[str, str]) -> NoBrowserError:
    attempts = "\n".join(f"  - {what}: {problem}" for what, problem in tried.items())
    return NoBrowserError(
        "The tests of the pages need a browser, and there is none that starts. Tried, in this order:\n"
        f"{attempts}\n"
        f"Install Chromium or Google Chrome, or name one: {NAMED_BY}=/path/to/chrome make test"
    )


if __name__ == "__main__":
    try:
        print(find_or_get())
    except NoBrowserError as error:
        sys.exit(str(error))
