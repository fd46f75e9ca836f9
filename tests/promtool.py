"""Prometheus's own checker for the tests: one that is installed, or Debian's; `python -m tests.promtool` says which.

Debian's package is unpacked and not installed: installed, it would start a Prometheus. So nobody has to be root for it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.getting import one_at_a_time, reason, run

NAMED_BY = "TEST_PROMTOOL"
"""The environment variable that names the one to take, and no other."""

KEPT = Path(sys.prefix) / "lib" / "promtool"
"""Where it is kept: with everything else that the tests brought."""

CHECK_SECONDS = 60


class NoPromtoolError(Exception):
    """There is none, and none could be got; says what was tried and what to do."""


def find_or_get(environment: Mapping[str, str] = os.environ, kept: Path = KEPT) -> Path:
    """A promtool that starts.

    Args:
        environment: may name it, and says where programs are.
        kept: where one is kept that was got.

    Raises:
        NoPromtoolError: there is none, and none could be got.
    """
    tried = dict[str, str]()
    if named := environment.get(NAMED_BY):
        return _started(Path(named).expanduser(), tried) or _fail(tried)
    path = environment.get("PATH", "")
    installed = [Path(found) for found in (shutil.which("promtool", path=path), str(kept)) if found]
    for each in installed:
        if each.exists() and (found := _started(each, tried)):
            return found
    with one_at_a_time("promtool"):
        # Whoever had the lock before may have got it.
        if kept.exists() and (found := _started(kept, tried)):
            return found
        return _unpacked(path, kept, tried) or _fail(tried)


def _unpacked(path: str, kept: Path, tried: dict[str, str]) -> Path | None:
    """Debian's, out of its package."""
    apt, dpkg = (shutil.which(name, path=path) for name in ("apt-get", "dpkg-deb"))
    if apt is None or dpkg is None:
        tried["Debian's package"] = "this is no Debian"
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        download = ((apt, "download", "-q", "prometheus"),)
        if not run(download, tried, folder) and not (
            os.geteuid() == 0 and run(((apt, "update", "-q"), *download), tried, folder)
        ):
            return None
        [package] = folder.glob("prometheus_*.deb")
        if not run(((dpkg, "-x", str(package), str(folder / "unpacked")),), tried, folder):
            return None
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Whoever looks meanwhile sees none, or all of it.
        half = kept.with_suffix(".half")
        shutil.copy2(folder / "unpacked/usr/bin/promtool", half)
        half.rename(kept)
    return _started(kept, tried)


def _started(path: Path, tried: dict[str, str]) -> Path | None:
    try:
        answer = subprocess.run(  # noqa: S603
            [path, "--version"], capture_output=True, text=True, timeout=CHECK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        tried[str(path)] = str(error)
        return None
    if answer.returncode == 0 and "promtool" in answer.stdout + answer.stderr:
        return path
    tried[str(path)] = reason(answer.stderr or answer.stdout) or f"ended with status {answer.returncode}"
    return None


def _fail(tried: Mapping[str, str]) -> Path:
    attempts = "\n".join(f"  - {what}: {problem}" for what, problem in tried.items())
    raise NoPromtoolError(
        "The tests of alerts and dashboards need Prometheus's promtool, and there is none that starts. Tried:\n"
        f"{attempts}\n"
        f"Install Prometheus, or name a promtool: {NAMED_BY}=/path/to/promtool make test"
    )


def promtool(path: Path, *arguments: str | Path, given: str | None = None) -> tuple[int, str]:
    """Its status, and all that it says."""
    answer = subprocess.run(  # noqa: S603
        [path, *arguments],
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=CHECK_SECONDS,
        check=False,
    )
    return answer.returncode, answer.stdout


if __name__ == "__main__":
    try:
        print(find_or_get())
    except NoPromtoolError as error:
        sys.exit(str(error))
