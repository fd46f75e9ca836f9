"""`referrals release-check`: whether this code can follow what is released. Each part fails when the thing breaks.

The ledger of every released version stands in `tests/ledgers/<version>.json.gz`, of invented people, and is never
changed. To record that of the version in `pyproject.toml`:

    .venv/bin/pytest tests/test_release_check.py -k on_record --record-histories
"""

import gzip
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cli import contract, release
from devstack.demo import Demo
from devstack.population import FEWEST_MEMBERS
from devstack.postgres import EmbeddedPostgres
from ledger import migrate as migrating
from ledger.migrate import newest_version
from ledger.rehearsal import Recording, imprint, record, rehearse, restore
from runtime.settings import PROJECT
from tests.operator_support import Operator
from tests.stripe_events import unique
from tests.support import HASHES, DatabaseUrls, World, copied_database

HISTORIES = PROJECT / "tests" / "histories"
LEDGERS = PROJECT / "tests" / "ledgers"
CONTRACT = PROJECT / "docs" / "openapi.json"


def recorded() -> Recording:
    return Recording.of(json.loads(gzip.decompress((LEDGERS / "0.1.0.json.gz").read_bytes())))


@pytest.fixture
def empty(postgres: EmbeddedPostgres) -> DatabaseUrls:
    return copied_database(postgres, "template0", unique("rehearsal"))


async def test_the_ledger_of_this_version_is_on_record(
    live_world: World, database_urls: DatabaseUrls, empty: DatabaseUrls, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    anew = request.config.getoption("--record-histories")
    folder, members = (LEDGERS, 40) if anew else (tmp_path, FEWEST_MEMBERS)
    demo = Demo(database_urls.app, live_world.plans, HASHES, live_world.runs, lambda *_: None)
    try:
        await demo.fill(1, members)
    finally:
        await demo.close()
    file = folder / f"{version('kallyai-referrals')}.json.gz"
    document = json.dumps(record(database_urls.owner).document())
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(gzip.compress(document.encode(), mtime=0))
    known = Recording.of(json.loads(gzip.decompress(file.read_bytes())))
    assert known.schema == newest_version()
    restore(empty.owner, known, known.schema)
    assert imprint(empty.owner) == imprint(database_urls.owner)
    with psycopg.connect(empty.owner.replace("+psycopg", "")) as connection:
        # Numbers go on behind those that are there.
        connection.execute(
            "INSERT INTO referral_event (referral_id, stage, at) SELECT referral_id, stage, now() FROM referral LIMIT 1"
        )


def test_rule_24_a_recorded_ledger_names_nobody() -> None:
    for file in LEDGERS.glob("*.json.gz"):
        text = gzip.decompress(file.read_bytes()).decode()
        assert "@" not in text
        assert str(PROJECT) not in text
        assert file.stat().st_size < 100_000
    assert {each.table for each in recorded().tables if each.rows} >= {"account", "referral", "grant_lot", "entry"}


async def test_this_code_can_follow_what_is_released(operator: Operator) -> None:
    said = await operator.says("release-check", "--json", *places())
    assert said.status == 0, said.out + said.err
    parts = {part["name"]: part for part in said.document["parts"]}
    assert list(parts) == ["HTTP contract", "histories", "migrations"]
    assert said.document["fine"] is True
    number = len(list((HISTORIES / "0.1.0").glob("*.json")))
    assert f"{number} of 0.1.0" in parts["histories"]["checked"]
    tried = [words.partition(":")[0] for words in parts["migrations"]["checked"]]
    assert tried == ["0.1.0 at 0001", f"0.1.0 at {recorded().schema}"]


def places(**others: Path) -> list[str]:
    folders = {"histories": HISTORIES, "ledgers": LEDGERS, "contract": CONTRACT} | others
    return [word for name, place in folders.items() for word in (f"--{name}", str(place))]


@pytest.fixture
def operator() -> Operator:
    return Operator({})


def test_the_released_document_is_that_of_this_version() -> None:
    # Whoever adds to it writes it anew: make openapi.
    assert CONTRACT.read_text(encoding="utf-8") == contract.text_of(contract.document_of_this_code())


def test_a_caller_who_would_be_left_behind_is_named(tmp_path: Path) -> None:
    document = json.loads(CONTRACT.read_text(encoding="utf-8"))
    document["paths"]["/v1/everything"] = document["paths"]["/v1/signups"]
    released = tmp_path / "openapi.json"
    released.write_text(json.dumps(document), encoding="utf-8")
    part = release.check_contract(released)
    assert part.flaws == ["/v1/everything is gone"]
    with pytest.raises(release.CannotCheckError, match="nowhere"):
        release.check_contract(tmp_path / "nowhere.json")


async def test_a_run_that_would_be_left_behind_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "0.0.9"
    folder.mkdir()
    sound = HISTORIES / "0.1.0" / "settled_friend_first.json"
    shutil.copy(sound, folder / "sound.json")
    history = json.loads(sound.read_text(encoding="utf-8"))
    # As if the code of then had waited for nothing before it asked for the first step.
    marker = next(event for event in history["events"] if "markerRecordedEventAttributes" in event)
    marker["markerRecordedEventAttributes"]["details"]["data"]["payloads"][0]["data"] = "e30="
    timer = next(event for event in history["events"] if "timerStartedEventAttributes" in event)
    timer["timerStartedEventAttributes"]["timerId"] = "another"
    (folder / "another.json").write_text(json.dumps(history), encoding="utf-8")
    part = await release.check_histories(tmp_path, lambda _: None)
    assert part.checked == ["2 of 0.0.9"]
    assert [flaw.partition(":")[0] for flaw in part.flaws] == ["0.0.9/another"]
    (folder / "none.json").write_text("{", encoding="utf-8")
    with pytest.raises(release.CannotCheckError, match=r"none\.json is no history"):
        await release.check_histories(tmp_path, lambda _: None)


@pytest.fixture
def more_migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds a migration to a copy of ours, as a later release would."""
    folder = tmp_path / "migrations"
    shutil.copytree(PROJECT / "ledger" / "migrations", folder, ignore=shutil.ignore_patterns("__pycache__"))
    original = migrating._config

    def config() -> Any:
        changed = original()
        changed.set_main_option("script_location", str(folder))
        return changed

    monkeypatch.setattr(migrating, "_config", config)

    def add(body: str, said: str = "") -> None:
        (folder / "versions" / "9999_later.py").write_text(
            '"""Later."""\nfrom alembic import op\nfrom ledger.migrations import steps\n'
            f'revision = "9999"\ndown_revision = "{newest_version()}"\n{said}\ndef upgrade() -> None:\n    {body}\n',
            encoding="utf-8",
        )

    return add


LATER = {
    "op.execute('ALTER TABLE account ADD COLUMN region text')": [],
    "op.execute('CREATE INDEX later ON entry (at)')": [
        "migration 9999: all of entry is read under a lock (ShareLock) that keeps writers out"
    ],
    "op.execute('ALTER TABLE account DROP COLUMN first_name CASCADE')": [
        "migration 9999: the column account.first_name is gone"
    ],
    "op.execute('UPDATE account SET invited = invited + 1')": [
        "migration 9999: rows of account are changed all at once: fill() does so some at a time",
        "migration 9999: values of account.invited are not what they were",
        "invited-is-counted no longer holds",
    ],
    "op.execute('CREATE TABLE account (x int)')": ['relation "account" already exists'],
}


@pytest.mark.parametrize("body", LATER)
async def test_what_a_later_migration_would_lose_or_hold_up_is_named(
    more_migrations: Any, postgres: EmbeddedPostgres, body: str
) -> None:
    more_migrations(body)
    part = release.Part("migrations")
    await release._migrate(postgres, recorded(), newest_version(), newest_version(), unique("later"), part)
    said = [flaw.partition(": ")[2] for flaw in part.flaws]
    assert len(said) == len(LATER[body]), said
    assert all(one.startswith(words) for one, words in zip(said, LATER[body], strict=True)), said


def test_a_migration_may_say_what_it_takes_away(more_migrations: Any, empty: DatabaseUrls) -> None:
    more_migrations(
        "op.execute('ALTER TABLE account DROP COLUMN first_name CASCADE')", 'changes = ("account.first_name",)'
    )
    restore(empty.owner, recorded(), recorded().schema)
    done = rehearse(empty.owner, baseline=newest_version())
    assert (done.ended_at, done.applied[-1], done.flaws) == ("9999", "9999", [])


async def test_a_restored_copy_is_migrated_and_what_is_wrong_in_it_is_named(
    operator: Operator, empty: DatabaseUrls
) -> None:
    restore(empty.owner, recorded(), "0009")
    sound = await release.check_copy(empty.owner, newest_version())
    assert sound.flaws == []
    assert sound.checked[0].endswith(f" migrations to {newest_version()}")
    with psycopg.connect(empty.owner.replace("+psycopg", "")) as connection:
        connection.execute("UPDATE account SET minutes_earned = minutes_earned + 1 WHERE minutes_earned > 0")
    assert any(
        flaw.startswith("earned-is-counted no longer holds")
        for flaw in (await release.check_copy(empty.owner, newest_version())).flaws
    )
    refused = await operator.says(
        "release-check",
        *places(),
        REFERRALS_COPY_DATABASE_URL=empty.owner.replace("+psycopg", ""),
        REFERRALS_DATABASE_URL=empty.app.replace("+psycopg", ""),
    )
    assert refused.status == 2
    assert "names the database in use" in refused.err


async def test_what_is_not_there_is_not_taken_for_fine(operator: Operator, tmp_path: Path) -> None:
    for name in ("histories", "ledgers"):
        said = await operator.says("release-check", *places(**{name: tmp_path}))
        assert said.status == 2, said.out
        assert str(tmp_path) in said.err
    broken = tmp_path / "0.1.0.json.gz"
    broken.write_bytes(b"nothing")
    with pytest.raises(release.CannotCheckError, match="is no recorded ledger"):
        release.recorded_ledgers(tmp_path)
    assert os.listdir(tmp_path) == [broken.name]  # noqa: PTH208
