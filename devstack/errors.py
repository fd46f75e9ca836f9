"""What the development stack says when it cannot go on."""

from pathlib import Path


class StackError(Exception):
    """The stack cannot start or go on; the message is meant for the person at the terminal, without a traceback."""


def tail_of(log: Path, lines: int = 15) -> str:
    """The last lines of a log file, indented, to stand below an error message; a remark where there is nothing."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    last = text.splitlines()[-lines:]
    if not last:
        return f"  (nothing in {log})"
    return "\n".join([f"  the end of {log}:", *(f"    {line}" for line in last)])
