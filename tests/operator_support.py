"""The operator at the command line: the real console script, in a process of its own."""

import asyncio
import json
import os
from dataclasses import dataclass
from typing import Any

from tests.conftest import BIN
from tests.support import DatabaseUrls, World


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
        """Run a command; `settings` come on top of the environment."""
        process = await asyncio.create_subprocess_exec(
            BIN / "referrals",
            *arguments,
            env={**_surrounding(), **self.environment, **settings},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert b"Traceback" not in err, err.decode()
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


def _surrounding() -> dict[str, str]:
    ours = ("REFERRALS_", "TEMPORAL_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
