"""How tests get a program that is not there: commands that may take long, and one who runs them at a time."""

import fcntl
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

INSTALL_SECONDS = 300


def run(commands: Iterable[Sequence[str]], tried: dict[str, str], folder: Path | None = None) -> bool:
    """Run commands until one fails; what an installer leaves running ends with it."""
    for command in commands:
        shown = " ".join(command)
        try:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                start_new_session=True,
                cwd=folder,
            )
        except OSError as error:
            tried[shown] = error.strerror or str(error)
            return False
        try:
            out, _ = process.communicate(timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            tried[shown] = f"not done within {INSTALL_SECONDS} seconds"
            return False
        if process.returncode != 0:
            tried[shown] = reason(out) or f"ended with status {process.returncode}"
            return False
    return True


def reason(text: str) -> str:
    """The line that says what went wrong: the first that is called an error, or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = (line for line in lines if line.startswith(("Error", "E:")))
    return next(errors, lines[-1] if lines else "")


@contextmanager
def one_at_a_time(what: str) -> Iterator[Path]:
    """Let one process of this user get a thing at a time; gives a file for its notes to the next."""
    folder = Path(tempfile.gettempdir()) / f"referrals-{what}-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    notes = folder / "notes"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        notes.touch()
        yield notes
