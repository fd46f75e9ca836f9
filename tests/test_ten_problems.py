"""The runbook, followed: ten problems planted into a real stack, found and mended by the commands that it names."""

import asyncio
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from devstack.postgres import EmbeddedPostgres
from ledger.migrate import newest_version
from runtime.settings import PROJECT
from tests import ten_problems
from tests.conftest import BIN
from tests.operator_support import Operator, Said
from tests.stripe_events import unique
from tests.stripe_server import stripe_server
from tests.support import copied_database, until
from tests.ten_problems import ENDPOINT, NEW_PRICE, Ground, Planted, StripeDashboard

REFERRAL = "0123456789abcdef01234567"
"""What the runbook calls a referral."""


def commands_of_the_runbook() -> frozenset[str]:
    """Every line of its blocks of commands, without remarks."""
    text = (PROJECT / "docs" / "operating.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return frozenset(line.partition("  #")[0].strip() for line in lines)


@dataclass
class Reader:
    """A new operator, who knows the runbook and nothing else."""

    folder: Path
    known: frozenset[str] = field(default_factory=commands_of_the_runbook)

    async def gives(self, command: str, **named: str) -> Said:
        """Give a command as it stands in the runbook; what it calls by another name is put in."""
        assert command in self.known, f"the runbook does not name it: {command}"
        # Letters that a name of a parameter cannot have.
        words = shlex.split(command)
        for name, value in named.items():
            stands_for = {"referral": REFERRAL, "second": "acct-fred-2"}.get(name, f"acct-{name}")
            words = [re.sub(rf"{stands_for}(?![\w-])", value, word) for word in words]
        environment = ten_problems.read_environment(self.folder, "operator")
        if words[0] == "referrals":
            return await Operator(environment).says(*words[1:])
        if words[0] == "curl":
            return await _call(words, environment)
        process = await asyncio.create_subprocess_exec(
            BIN / words[0],
            *words[1:],
            env={**os.environ, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Said(process.returncode or 0, out.decode(), err.decode())

    async def gives_well(self, command: str, **named: str) -> str:
        """The same, where it must go well; gives what it said."""
        said = await self.gives(command, **named)
        assert said.status == 0, said.out + said.err
        return " ".join(said.out.split())

    async def amiss(self) -> dict[str, str]:
        """What `referrals doctor` finds that is a problem or a warning, by its names."""
        assert "referrals doctor" in self.known
        said = await Operator(ten_problems.read_environment(self.folder, "operator")).says("doctor", "--json")
        found: dict[str, str] = {}
        for each in said.document["examined"]:
            if each["verdict"] in ("problem", "warning"):
                found[each["what"]] = f"{found.get(each['what'], '')}\n{each['words']}".strip()
        assert said.status == int(any(each["verdict"] == "problem" for each in said.document["examined"]))
        return found


async def _call(words: list[str], environment: dict[str, str]) -> Said:
    """What `curl` does with these words."""
    words = [Template(word).substitute(environment) for word in words]
    method, header, url = words[words.index("-X") + 1], words[words.index("-H") + 1], words[-1]
    name, _, value = header.partition(": ")
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        answer = await client.request(method, url, headers={name: value})
    return Said(int(answer.is_error), answer.text, "")


@pytest.fixture
async def ground(postgres: EmbeddedPostgres, dev_server: str) -> AsyncIterator[Ground]:
    """The servers of the tests, with a database and a namespace of the test's own."""
    folder = Path(tempfile.mkdtemp(prefix="referrals-tests-"))
    name = unique("ten").lower()
    try:
        async with stripe_server() as stripe:
            urls = copied_database(postgres, "template0", name)
            yield Ground(folder, postgres, urls, dev_server, unique("ten"), unique("queue"), stripe)
    finally:
        for program in ten_problems.PROGRAMS:
            await asyncio.to_thread(ten_problems.end, folder, program)
        with psycopg.connect(postgres.superuser_url(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        shutil.rmtree(folder, ignore_errors=True)


async def test_all_ten_problems_are_found_and_mended_by_the_commands_of_the_runbook(ground: Ground) -> None:
    planted, stripe = await ten_problems.plant(ground)
    reader = Reader(ground.folder)

    await a_migration_that_was_not_applied(reader, planted)
    await a_dead_worker(reader, ground)
    amiss = await everything_else_is_told_of(reader, planted, stripe)
    await a_lagging_expiry(reader, planted)
    await a_stuck_workflow(reader, planted)
    await a_wrong_secret(ground, stripe)
    await an_unknown_price_and_a_missed_webhook(reader, planted, stripe)
    await a_held_referral(reader, planted)
    by_hand = await a_duplicate_account(reader, planted, amiss["accounts"])
    await an_endpoint_that_is_down(reader, ground)

    assert await until(reader.amiss, lambda amiss: not amiss, 60) == {}
    # What a crash left of messages is taken up by the next sweep, within a minute.
    checked = await until(lambda: reader.gives("referrals check"), lambda said: said.status == 0, 90)
    assert "everything holds" in " ".join(checked.out.split())
    assert "no referral is like that" in await reader.gives_well("referrals list --needs-attention")
    names = set(planted.referrals) - {"duplicate"}
    assert_credited_once(ground, {by_hand, *(planted.referrals[name] for name in names)})
    # A message that was on its way when the endpoint went down is tried again by its own pace.
    assert await until(lambda: undelivered(ground), lambda left: not left, 90) == []


async def a_migration_that_was_not_applied(reader: Reader, planted: Planted) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{planted.url}/readyz")).status_code == 503
    amiss = await reader.amiss()
    assert amiss["schema"].endswith(f"this code wants {newest_version()}: referrals migrate")
    assert newest_version() in await reader.gives_well("referrals migrate")
    await ten_problems.until_answers(f"{planted.url}/readyz")


async def a_dead_worker(reader: Reader, ground: Ground) -> None:
    queue = ground.task_queue
    amiss = await until(reader.amiss, lambda amiss: f"{queue}," in amiss["workers"], 30)
    assert "schema" not in amiss
    assert f"none polls the queue {queue}, and " in amiss["workers"]
    assert f"none polls the queue {queue}-upkeep" in amiss["workers"]
    ten_problems.start(ground.folder, "worker")


async def everything_else_is_told_of(reader: Reader, planted: Planted, stripe: StripeDashboard) -> dict[str, str]:
    """Once a worker is there, everything that `doctor` can know stands there at once: gives that."""
    assert set(await stripe.send_again()) == {400}

    def runs(amiss: dict[str, str]) -> dict[str, str]:
        return {line.partition(":")[0]: line for line in amiss.get("runs", "").splitlines()}

    def told(amiss: dict[str, str]) -> bool:
        """The worker has taken up what only waited for one, and has failed at what it cannot go on with."""
        waited_for_it = planted.referrals["waiting for a worker"] in runs(amiss)
        return not waited_for_it and "its next step failed" in amiss.get("runs", "") and "deliveries" in amiss

    amiss = await until(reader.amiss, told, 40)
    assert set(amiss) == {"webhooks", "reconciliation", "accounts", "schedules", "runs", "deliveries"}
    lines = runs(amiss)
    assert set(lines) == {planted.referrals["lagging"], planted.referrals["stuck"]}
    assert "its run is over (terminated)" in lines[planted.referrals["lagging"]]
    assert "its next step failed" in lines[planted.referrals["stuck"]]
    assert amiss["webhooks"].startswith("no signature ever fitted, and at least ")
    assert amiss["reconciliation"].endswith(": referrals reconcile")
    assert amiss["schedules"].startswith("referrals-reconcile is paused: quiet during the incident: ")
    assert amiss["deliveries"].startswith(f"{ENDPOINT} does not take what it is sent (no answer, ")
    return amiss


async def a_lagging_expiry(reader: Reader, planted: Planted) -> None:
    lagging = planted.referrals["lagging"]
    checked = await reader.gives("referrals check")
    assert checked.status == 1
    for name in ("expiries-on-time", "open-has-a-run", f"{lagging}-referee"):
        assert name in checked.out
    assert "the run is over (terminated" in await reader.gives_well(f"referrals inspect {REFERRAL}", referral=lagging)
    await reader.gives_well(
        f"temporal workflow reset --workflow-id referral-{REFERRAL} --type LastWorkflowTask "
        '--reason "ended by mistake"',
        referral=lagging,
    )
    await settled(reader, lagging)


async def a_stuck_workflow(reader: Reader, planted: Planted) -> None:
    stuck = planted.referrals["stuck"]
    said = await reader.gives_well(f"referrals inspect {REFERRAL}", referral=stuck)
    assert re.search("its next step failed .*: the code does not fit what the history says was done", said), said
    await reader.gives_well(
        f"temporal workflow reset --workflow-id referral-{REFERRAL} --type FirstWorkflowTask "
        '--reason "its history is of other code"',
        referral=stuck,
    )
    await settled(reader, stuck)


async def settled(reader: Reader, referral: str) -> None:
    async def inspected() -> str:
        return await reader.gives_well(f"referrals inspect {REFERRAL}", referral=referral)

    said = await until(inspected, lambda said: said.startswith(f"referral {referral} settled"), 40)
    assert said.count(" credit +90 ") == said.count(" expiry -90 ") == 2


async def a_wrong_secret(ground: Ground, stripe: StripeDashboard) -> None:
    shown = json.loads((ground.folder / "stripe.json").read_text(encoding="utf-8"))
    assert shown["last_delivery"].endswith(": 400")
    settings = ten_problems.read_environment(ground.folder, "starter")
    settings["REFERRALS_STRIPE_WEBHOOK_SECRETS"] = shown["signing_secret"]
    ten_problems.write_environment(ground.folder, "starter", settings)
    await asyncio.to_thread(ten_problems.restart, ground.folder, "starter")
    await ten_problems.until_answers(f"{settings['REFERRALS_PUBLIC_URL']}/readyz")
    assert set(await stripe.send_again()) == {200}


async def an_unknown_price_and_a_missed_webhook(reader: Reader, planted: Planted, stripe: StripeDashboard) -> None:
    unknown, missed = planted.referrals["unknown price"], planted.referrals["missed"]
    listed, paid, unpaid = await asyncio.gather(
        reader.gives_well("referrals list --reason unknown-price"),
        reader.gives_well(f"referrals inspect {REFERRAL}", referral=unknown),
        reader.gives_well(f"referrals inspect {REFERRAL}", referral=missed),
    )
    assert unknown in listed
    assert f" {NEW_PRICE} (" in paid
    assert "Payments of the friend" not in unpaid
    stripe.name_price(NEW_PRICE, "pro_monthly")
    assert "events applied that no webhook had handled: 2" in await reader.gives_well("referrals reconcile")
    await reader.gives_well(
        'temporal schedule toggle --schedule-id referrals-reconcile --unpause --reason "the incident is over"'
    )
    await asyncio.gather(credited(reader, unknown), credited(reader, missed))


async def credited(reader: Reader, referral: str) -> None:
    async def inspected() -> str:
        return await reader.gives_well(f"referrals inspect {REFERRAL}", referral=referral)

    await until(inspected, lambda said: said.startswith(f"referral {referral} credited"), 40)


async def a_held_referral(reader: Reader, planted: Planted) -> None:
    held = planted.referrals["held"]
    assert f"{held} in_review" in await reader.gives_well("referrals list --needs-attention")
    said = await reader.gives_well(
        f'referrals review {REFERRAL} --approve --by ann --note "a couple that shares a card"', referral=held
    )
    assert "the referral is credited" in said


async def a_duplicate_account(reader: Reader, planted: Planted, told: str) -> str:
    """Gives the referral by which both are credited in the end."""
    rita, dora, twice = (planted.members[name].account_id for name in ("rita", "dora", "dora twice"))
    assert told.startswith(f"{dora} and {twice} were reported as one Stripe customer")
    refused = planted.referrals["duplicate"]
    assert f"{refused} refused" in await reader.gives_well("referrals list --friend acct-fred-2", second=twice)
    said = await reader.gives_well(f"referrals inspect {REFERRAL}", referral=refused)
    assert f"shares its e-mail address with {dora}, which had it first" in said
    attribute = (
        'referrals attribute acct-fred --referrer acct-rita   --by ann --note "ticket 4711: came by Rita\'s link"'
    )
    # Rule 10: whoever takes the wrong one of the two is told so, and nothing is written.
    wrong = await reader.gives(attribute, fred=twice, rita=rita)
    assert (wrong.status, "was another account's before" in wrong.err) == (1, True), wrong.err
    said = await reader.gives_well(attribute, fred=dora, rita=rita)
    (by_hand,) = re.findall(r"referral ([0-9a-f]{24}) is", said)
    await reader.gives_well(
        'curl -X DELETE -H "Authorization: Bearer $REFERRALS_API_KEY" $REFERRALS_URL/v1/accounts/acct-fred-2',
        second=twice,
    )
    await credited(reader, by_hand)
    return str(by_hand)


async def an_endpoint_that_is_down(reader: Reader, ground: Ground) -> None:
    port = ten_problems.read_environment(ground.folder, "backend")["PORT"]
    ten_problems.start(ground.folder, "backend")

    async def is_up() -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.post(f"http://127.0.0.1:{port}/")).is_success
        except httpx.HTTPError:
            return False

    assert await until(is_up, bool)
    assert " under way" in await reader.gives_well("referrals redeliver --waiting")


def rows(ground: Ground, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(ground.urls.app.replace("+psycopg", "")) as connection:
        return connection.execute(query).fetchall()


def assert_credited_once(ground: Ground, referrals: set[str]) -> None:
    """Both sides of each, at the same moment, and of no other."""
    grants = rows(ground, "SELECT referral_id, role, minutes, credited_at FROM grant_lot ORDER BY referral_id, role")
    assert [(one[0], one[1], one[2]) for one in grants] == [
        (referral, role, 90) for referral in sorted(referrals) for role in ("referee", "referrer")
    ]
    assert len({(one[0], one[3]) for one in grants}) == len(referrals)
    credits_ = rows(ground, "SELECT count(*) FROM entry WHERE kind = 'credit'")
    assert credits_ == [(2 * len(referrals),)]


async def undelivered(ground: Ground) -> list[tuple[Any, ...]]:
    return rows(
        ground,
        "SELECT o.message_id, o.type, o.created_at, d.* FROM outbox o LEFT JOIN delivery d USING (message_id)"
        " WHERE d.state IS DISTINCT FROM 'delivered'",
    )
