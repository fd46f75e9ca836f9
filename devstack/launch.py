"""Becomes one program of the stack: `python -m devstack.launch NAME`, run by the supervisor at every start of it.

It gives the program its own environment, notes its pid, so that the pid files hold after every restart, and replaces
itself by it.
"""

import os
import sys
from pathlib import Path

from devstack.configuration import PROGRAMS, StackConfiguration, program
from devstack.errors import StackError
from devstack.processes import remember
from devstack.supervision import DATA_VARIABLE


def main(name: str) -> None:
    """Turn this process into the program; returns only by an error.

    Raises:
        StackError: there is no such program, or its binary is missing.
    """
    if name not in PROGRAMS:
        raise StackError(f"usage: python -m devstack.launch {'|'.join(PROGRAMS)}")
    data = Path(os.environ[DATA_VARIABLE])
    chosen = program(name, StackConfiguration.read(data), os.environ)
    # A process keeps its pid and its start time when it becomes another program.
    remember(data, name, os.getpid())
    os.chdir(chosen.folder)
    if chosen.account is not None:
        chosen.account.become()
    os.execve(chosen.command[0], chosen.command, chosen.environment)  # noqa: S606 - our own command


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2] or [""])
    except (StackError, OSError) as error:
        sys.exit(f"{' '.join(sys.argv[1:2])}: {error}")
