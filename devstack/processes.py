"""Processes that outlive the one that started them, recognised by their pid and the moment they started."""

import json
import os
import signal
import time
from pathlib import Path

import psutil

# Two readings of one start may differ by the rounding of the boot time. No pid comes round again within it.
TOLERANCE_SECONDS = 2.0

_POLL_SECONDS = 0.05


def _details(folder: Path, name: str) -> Path:
    return folder / "run" / f"{name}.json"


def remember(folder: Path, name: str, pid: int) -> None:
    """Note that process `pid` is the program `name`: its pid in `<name>.pid`, with its start in `run/`."""
    details = {"pid": pid, "started": psutil.Process(pid).create_time()}
    for path, text in ((_details(folder, name), json.dumps(details)), (folder / f"{name}.pid", f"{pid}\n")):
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)


def find(folder: Path, name: str) -> psutil.Process | None:
    """The remembered process, if it still runs; None for another one that was given its pid."""
    try:
        details = json.loads(_details(folder, name).read_text(encoding="utf-8"))
        process = psutil.Process(int(details["pid"]))
        same = abs(process.create_time() - float(details["started"])) <= TOLERANCE_SECONDS
        return process if same and is_alive(process) else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def last_pid(folder: Path, name: str) -> int | None:
    """The pid that was noted last, whether it still runs or not."""
    try:
        return int((folder / f"{name}.pid").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def forget(folder: Path, name: str) -> None:
    """Remove what :func:`remember` wrote."""
    for path in (_details(folder, name), folder / f"{name}.pid"):
        path.unlink(missing_ok=True)


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that ended and was not yet collected by its parent does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def stop(process: psutil.Process, how: signal.Signals = signal.SIGTERM, patience_seconds: float = 10) -> None:
    """Ask a process to end, wait for it, and kill it with its children if it does not."""
    try:
        children = process.children(recursive=True)
        process.send_signal(how)
        if _gone(process, patience_seconds):
            return
        for each in [process, *children]:
            if is_alive(each):
                each.kill()
        _gone(process, patience_seconds)
    except psutil.NoSuchProcess:
        return


def _gone(process: psutil.Process, patience_seconds: float) -> bool:
    # psutil's own wait() would wait for a zombie whose parent never collects it, as there is in many a container.
    deadline = time.monotonic() + patience_seconds
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
