"""The operator at the command line: each command in a process of its own, with an environment of its own.

The processes are forked off one that has imported everything already, for a test gives many commands. What the console
script itself does is shown by `says_at_a_shell`.
"""

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.main import main
from tests.conftest import BIN
from tests.support import DatabaseUrls, World

LONGEST = 120
"""How many seconds a command may take."""

_processes = multiprocessing.get_context("forkserver")
_PRELOADED = ("attribute", "batching", "check", "decide", "doctor", "inspect", "listing", "replay", "retry", "what_if")
_processes.set_forkserver_preload([__name__, "runtime.temporal", *(f"cli.{name}" for name in _PRELOADED)])


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document that it answered with."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Operator:
    """Runs `referrals` with an environment that holds what a test says, and nothing else of the program's."""

    environment: dict[str, str]

    async def says(self, *arguments: str, **settings: str) -> Said:
        """Give a command; `settings` come on top of the environment."""
        with tempfile.TemporaryDirectory() as folder:
            said = (Path(folder) / "out", Path(folder) / "err")
            environment = {**_surrounding(), **self.environment, **settings}
            process = _processes.Process(target=_command, args=(arguments, environment, *said), daemon=True)
            process.start()
            await asyncio.to_thread(process.join, LONGEST)
            assert process.exitcode is not None, f"{arguments} came to no end"
            out, err = (file.read_text(encoding="utf-8") for file in said)
        assert "Traceback" not in err, err
        return Said(process.exitcode, out, err)

    async def says_at_a_shell(self, *arguments: str) -> Said:
        """Give a command to the console script."""
        process = await asyncio.create_subprocess_exec(
            BIN / "referrals",
            *arguments,
            env={**_surrounding(), **self.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Said(process.returncode or 0, out.decode(), err.decode())

    async def answer(self, *arguments: str, status: int = 0, **settings: str) -> Any:
        """The document that a command answers with which ends with this status."""
        said = await self.says(*arguments, "--json", **settings)
        assert said.status == status, said.out + said.err
        return said.document

    async def refusal(self, *arguments: str, **settings: str) -> str:
        """What a command says which does nothing, answers nothing, and ends with 1."""
        said = await self.says(*arguments, "--json", **settings)
        assert (said.status, said.out) == (1, ""), said.out + said.err
        assert said.err.startswith("referrals: "), said.err
        return said.err.removeprefix("referrals: ").strip()


def operator_of(world: World, urls: DatabaseUrls) -> Operator:
    """The operator of a test's world."""
    client = world.environment.client
    return Operator(
        {
            "REFERRALS_DATABASE_URL": urls.app,
            "REFERRALS_TASK_QUEUE": world.task_queue,
            "TEMPORAL_ADDRESS": client.service_client.config.target_host,
            "TEMPORAL_NAMESPACE": client.namespace,
        }
    )


def _command(arguments: Sequence[str], environment: dict[str, str], out: Path, err: Path) -> None:
    """What the process does: it becomes the console script."""
    os.environ.clear()
    os.environ.update(environment)
    for file, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = ["referrals", *arguments]
    main()


def _surrounding() -> dict[str, str]:
    ours = ("REFERRALS_", "TEMPORAL_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
