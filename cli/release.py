"""Whether this code can follow what is released: the runs under way, the data that is there, and its callers."""

import asyncio
import gzip
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from rich.console import Console
from rich.text import Text
from sqlalchemy.exc import DBAPIError

from cli import contract as contracts
from cli import replay as replaying
from cli.answers import first_line
from cli.check import check_ledger
from devstack.errors import StackError
from devstack.ports import free_port
from devstack.postgres import EmbeddedPostgres
from ledger.database import Database
from ledger.invariants import Patience
from ledger.migrate import revisions
from ledger.rehearsal import Recording, Rehearsed, rehearse, restore
from program.plans import load_plans
from runtime.settings import PROJECT

Say = Callable[[str], None]


class CannotCheckError(Exception):
    """Something that is needed for it is not there; the message says what."""


@dataclass
class Part:
    """A part of what was checked.

    Args:
        name: of the part.
        checked: what was looked at.
        flaws: what this code would break.
        notes: what is new, and harms nobody.
    """

    name: str
    checked: list[str] = field(default_factory=list)
    flaws: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Checked:
    """All parts."""

    parts: list[Part] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        """Whether nothing would break."""
        return not any(part.flaws for part in self.parts)


async def check(histories: Path, ledgers: Path, contract: Path, copy: str | None, say: Say) -> Checked:
    """Check all parts.

    Args:
        histories: the folder with a folder of recorded histories for each generation.
        ledgers: the folder with a recorded ledger of each released schema.
        contract: the released OpenAPI document.
        copy: the address of a restored copy of a real ledger, which is migrated in place.
        say: hears what is looked at.

    Raises:
        CannotCheckError: something is not there.
    """
    say("comparing the OpenAPI documents")
    checked = Checked([check_contract(contract)])
    checked.parts.append(await check_histories(histories, say))
    recordings = recorded_ledgers(ledgers)
    checked.parts.append(await check_ledgers(recordings, say))
    if copy is not None:
        say("migrating the copy")
        checked.parts.append(await check_copy(copy, baseline_of(recordings)))
    return checked


def check_contract(file: Path) -> Part:
    """Compare the released OpenAPI document with this code's.

    Raises:
        CannotCheckError: it cannot be read.
    """
    try:
        released = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotCheckError(f"{file}: {first_line(error)}") from None
    compared = contracts.compare(released, contracts.document_of_this_code())
    calls = sum(method in contracts.METHODS for methods in released["paths"].values() for method in methods)
    return Part("HTTP contract", [f"{calls} calls of {file}"], compared.breaks, compared.additions)


async def check_histories(folder: Path, say: Say) -> Part:
    """Replay all recorded histories against this code.

    Raises:
        CannotCheckError: there are none.
    """
    part = Part("histories")
    for generation, files in _histories(folder).items():
        say(f"replaying {len(files)} histories of {generation}")
        for file in files:
            try:
                failure = await replaying.replay_file(file)
            except (OSError, ValueError) as error:
                raise CannotCheckError(first_line(error)) from None
            if failure is not None:
                part.flaws.append(f"{generation}/{file.stem}: {failure}")
        part.checked.append(f"{len(files)} of {generation}")
    if not part.checked:
        raise CannotCheckError(f"there are no histories in {folder}: run it in a checkout, or name them")
    return part


def recorded_ledgers(folder: Path) -> dict[str, Recording]:
    """The ledgers of all released versions, the first one first.

    Raises:
        CannotCheckError: there are none, or one cannot be read.
    """
    found = {file.name.removesuffix(".json.gz"): _read(file) for file in folder.glob("*.json.gz")}
    if not found:
        raise CannotCheckError(f"there are no recorded ledgers in {folder}: run it in a checkout, or name them")
    return dict(sorted(found.items(), key=lambda each: (each[1].schema, each[1].recorded_at)))


def baseline_of(recordings: Mapping[str, Recording]) -> str:
    """The schema of the first release: no migration up to it ever runs on a database with traffic."""
    return next(iter(recordings.values())).schema


async def check_ledgers(recordings: Mapping[str, Recording], say: Say) -> Part:
    """Migrate every recorded ledger, and what the very first schema can hold of the first, to the newest version.

    Raises:
        CannotCheckError: PostgreSQL cannot be started.
    """
    baseline = baseline_of(recordings)
    part = Part("migrations")
    with _throwaway_postgres() as server:
        for number, (generation, recording) in enumerate(recordings.items()):
            # Every migration runs over data: the very first schema holds much of the first release's already.
            for version in dict.fromkeys([*([] if number else [revisions()[0].version]), recording.schema]):
                say(f"migrating the ledger of {generation} from {version}")
                await _migrate(server, recording, version, baseline, generation, part)
    return part


async def _migrate(
    server: EmbeddedPostgres, recording: Recording, version: str, baseline: str, generation: str, part: Part
) -> None:
    url = await asyncio.to_thread(_new_database, server, f"from_{generation}_{version}".replace(".", "_"))
    what = f"{generation} at {version}"
    try:
        await asyncio.to_thread(restore, url, recording, version)
        done = await asyncio.to_thread(rehearse, url, baseline=baseline)
    except (DBAPIError, psycopg.Error) as error:
        part.flaws.append(f"{what}: {first_line(getattr(error, 'orig', None) or error)}")
        return
    part.flaws += [f"{what}: {flaw}" for flaw in done.flaws]
    if version == recording.schema:
        part.flaws += [f"{what}: {flaw}" for flaw in await _broken(url, recording.recorded_at)]
    part.checked.append(f"{what}: {_done(done)}")


async def check_copy(url: str, baseline: str) -> Part:
    """Migrate a restored copy in place, and check the ledger in it.

    Args:
        url: of the copy, as its owner.
        baseline: the schema of the first release.

    Raises:
        CannotCheckError: it cannot be reached.
    """
    part = Part("the copy")
    try:
        done = await asyncio.to_thread(rehearse, url, baseline=baseline)
    except (DBAPIError, psycopg.Error) as error:
        raise CannotCheckError(f"the copy: {first_line(getattr(error, 'orig', None) or error)}") from None
    part.flaws = done.flaws + await _broken(url, None)
    part.checked.append(_done(done))
    return part


async def _broken(url: str, at: datetime | None) -> list[str]:
    """The invariants that a ledger does not keep, at a time."""
    behind = timedelta(0) if at is None else at - datetime.now(UTC)
    database = Database(url, pool_size=1, offset=lambda: behind)
    # What is late depends on when the copy was made, and tells nothing of the migrations.
    patience = Patience(timedelta(days=365_0), timedelta(days=365_0))
    try:
        found = await check_ledger(database, load_plans(PROJECT / "plans.toml"), patience, 3, lambda _: None)
    finally:
        await database.close()
    return [f"{each.name} no longer holds: {each.number}" for each in found.findings if each.number]


def _done(done: Rehearsed) -> str:
    if not done.applied:
        return f"{done.rows} rows, nothing to migrate"
    return f"{done.rows} rows, {len(done.applied)} migrations to {done.ended_at}"


def _histories(folder: Path) -> dict[str, list[Path]]:
    generations = sorted(each for each in folder.glob("*") if each.is_dir())
    return {each.name: files for each in generations if (files := sorted(each.glob("*.json")))}


def _read(file: Path) -> Recording:
    try:
        return Recording.of(json.loads(gzip.decompress(file.read_bytes())))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CannotCheckError(f"{file} is no recorded ledger: {first_line(error)}") from None


@contextmanager
def _throwaway_postgres() -> Iterator[EmbeddedPostgres]:
    settings = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
    with tempfile.TemporaryDirectory(prefix="referrals-release-") as folder:
        place = Path(folder)
        # The server may be another user's, who has to reach it.
        place.chmod(0o755)
        try:
            server = EmbeddedPostgres(place / "postgres", free_port(), settings=settings).start()
        except (StackError, OSError) as error:
            raise CannotCheckError(f"PostgreSQL cannot be started: {first_line(error)}") from None
        try:
            yield server
        finally:
            server.destroy()


def _new_database(server: EmbeddedPostgres, name: str) -> str:
    server.create_database(name)
    return f"{server.owner_url.rpartition('/')[0]}/{name}".replace("postgresql://", "postgresql+psycopg://")


def render(checked: Checked, to: Console) -> None:
    """Show what was checked, what would break, and what is new."""
    for part in checked.parts:
        to.print(
            Text(part.name, style="bold"),
            Text("breaks" if part.flaws else "fine", style="red" if part.flaws else "green"),
        )
        for lines, sign in ((part.checked, " "), (part.flaws, "✗"), (part.notes, "+")):
            for line in lines:
                to.print(f"  {sign} {line}", soft_wrap=True)
