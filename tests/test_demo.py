"""`referrals demo`: a believable population, and what becomes of it by the ledger's own rules on real servers."""

import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from temporalio.service import RPCError

from devstack.configuration import StackConfiguration
from devstack.demo import CLICKS_RUN_FOR, Demo, DemoError, Filled, OtherSizeError, Step
from devstack.demo_command import chosen_stack
from devstack.errors import StackError
from devstack.population import FEWEST_MEMBERS, HISTORY, Population, Report, SignUp, TakeLink, populate
from devstack.portal import Deployment, deployment, new_session
from ledger import queries
from program.plans import Plan, Plans
from program.referral import Stage
from tests.http_support import IDENTITY_HASH_KEY
from tests.support import HASHES, DatabaseUrls, World, command

BONUSES = {"starter": 22, "pro": 90, "power": 300}
UNTIL = datetime(2026, 5, 31, 12, 30, tzinfo=UTC)

KEPT_OUT = ("alembic_version",)
"""Tables in which nothing of a population can stand."""


async def _fill(
    world: World,
    urls: DatabaseUrls,
    *,
    seed: int = 1,
    members: int = FEWEST_MEMBERS,
    step: Step = lambda *_: None,
    **how: Any,
) -> Filled:
    demo = Demo(urls.app, world.plans, HASHES, world.runs, step, **how)
    try:
        return await demo.fill(seed, members)
    finally:
        await demo.close()


async def _rows(world: World, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
    async with world.database.transaction() as transaction:
        return [tuple(row) for row in await transaction.execute(text(statement), parameters)]


async def _rows_of_every_table(world: World) -> dict[str, int]:
    tables = await _rows(
        world,
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'",
    )
    names = sorted(name for (name,) in tables if name not in KEPT_OUT)
    return {name: (await _rows(world, f'SELECT count(*) FROM "{name}"'))[0][0] for name in names}  # noqa: S608


def _populate(seed: int = 1, members: int = 200) -> Population:
    return populate(seed, members, UNTIL, BONUSES)


# Who does what


def test_a_population_follows_from_its_seed_alone() -> None:
    before = random.getstate()
    population = _populate()
    assert population == _populate()
    assert random.getstate() == before
    other = _populate(seed=2)
    assert not {member.account_id for member in population.members} & {member.account_id for member in other.members}
    assert not set(population.signups) & set(other.signups)
    assert [act.at for act in population.acts] != [act.at for act in other.acts]


@pytest.mark.parametrize("members", [FEWEST_MEMBERS, FEWEST_MEMBERS + 1, 59, 60, 150])
def test_there_are_as_many_members_as_asked_for_and_nobody_acts_in_the_future(members: int) -> None:
    for seed in range(8):
        population = _populate(seed, members)
        assert len(population.members) == len({member.account_id for member in population.members}) == members
        reported = {act.member.account_id for act in population.acts if isinstance(act, Report | SignUp)}
        assert reported == {member.account_id for member in population.members}
        times = [act.at for act in population.acts]
        assert times == sorted(times)
        assert UNTIL - HISTORY - timedelta(days=1) < times[0]
        assert times[-1] <= UNTIL
        assert all(click.clicked_at <= UNTIL for click in population.clicks)
        assert all(at.microsecond == 0 for at in times)


def test_a_population_has_a_star_whose_friends_fill_more_than_a_page_and_members_of_every_kind() -> None:
    population = _populate()
    links = {act.account_id for act in population.acts if isinstance(act, TakeLink)}
    referrers = Counter(act.click.account_id for act in population.acts if isinstance(act, SignUp))
    assert referrers.most_common(1)[0][0] == population.star.account_id
    assert referrers[population.star.account_id] > 30
    assert population.newcomer.account_id in links - set(referrers)
    assert population.guest.account_id not in links
    assert 0.2 < len(links) / len(population.members) < 0.8
    assert set(referrers) <= links
    assert len({click.channel for click in population.clicks}) >= 6
    assert len({member.first_name for member in population.members}) > 40


def test_too_few_members_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {FEWEST_MEMBERS}"):
        _populate(members=FEWEST_MEMBERS - 1)


# What becomes of it


async def test_every_stage_is_there_and_every_open_referral_has_a_run_that_agrees(
    live_world: World, database_urls: DatabaseUrls
) -> None:
    filled = await _fill(live_world, database_urls, members=24)

    assert filled.added
    assert set(filled.stages) == set(Stage)
    assert min(filled.stages.values()) > 0
    assert filled.behind == ()
    assert {*filled.runs.values()} == {Stage.SIGNED_UP, Stage.IN_REVIEW, Stage.CREDITED}
    for referral_id, stage in filled.runs.items():
        known, state = await live_world.referral(referral_id), await live_world.state(referral_id)
        assert (state.stage, state.reason, state.plan) == (stage, known.reason, known.plan)
        assert state.referee == known.referee_account_id
        ends = {role: bonus.expires_at for role, bonus in state.bonuses.items()}
        assert ends == (known.expires_at if stage is Stage.CREDITED else {})
    for referral_id in set(filled.population.signups) - set(filled.runs):
        assert not (await live_world.referral(referral_id)).stage.open or await _is_void(live_world, referral_id)
        with pytest.raises(RPCError):
            await live_world.state(referral_id)
    refused = await _rows(live_world, "SELECT DISTINCT refusal FROM referral WHERE stage = 'refused'")
    assert len(refused) >= 3
    reasonless = "SELECT 1 FROM referral WHERE stage IN ('refused', 'lapsed', 'voided') AND reason IS NULL"
    assert await _rows(live_world, reasonless) == []


async def _is_void(world: World, referral_id: str) -> bool:
    lots = await _rows(world, "SELECT voided_at, expired_at FROM grant_lot WHERE referral_id = :id", id=referral_id)
    return bool(lots) and all(voided or expired for voided, expired in lots)


async def test_links_that_were_followed_lately_wait_in_temporal(
    live_idle_world: World, database_urls: DatabaseUrls
) -> None:
    filled = await _fill(live_idle_world, database_urls, members=24, patience=timedelta(0))

    lately = [
        click
        for click in filled.population.clicks
        if click.referral_id not in filled.population.signups and click.clicked_at > filled.until - CLICKS_RUN_FOR
    ]
    assert len(lately) == filled.stages[Stage.CLICKED] > 0
    for click in lately:
        known = await live_idle_world.runs.click(click.referral_id)
        assert known is not None
        assert (known.stage, known.referrer, known.clicked_at) == (Stage.CLICKED, click.account_id, click.clicked_at)


async def test_every_account_has_what_its_grants_and_its_journal_say_after_half_a_year(
    live_idle_world: World, database_urls: DatabaseUrls
) -> None:
    filled = await _fill(live_idle_world, database_urls, members=30, patience=timedelta(0))

    erased = {account_id for (account_id,) in await _rows(live_idle_world, _ERASED)}
    available = 0
    for member in filled.population.members:
        if member.account_id in erased:
            continue
        async with live_idle_world.database.transaction() as transaction:
            summary = await queries.summary(transaction, member.account_id)
            lots = (await queries.lots(transaction, member.account_id)).lots
            page = await queries.referrals_of(transaction, member.account_id, 1000)
        voided = await _rows(live_idle_world, _VOIDED, account=member.account_id)
        assert summary.bonus_minutes_earned == sum(lot.minutes for lot in lots) + voided[0][0]
        assert summary.bonus_minutes_available == sum(lot.remaining for lot in lots)
        assert summary.subscribed == sum(one.credited_at is not None for one in page.referrals)
        assert summary.invited == sum(one.stage is not Stage.REFUSED for one in page.referrals)
        available += summary.bonus_minutes_available
    assert available == filled.minutes > 0
    (clicks,) = (await _rows(live_idle_world, "SELECT sum(clicks) FROM click_count"))[0]
    assert clicks == filled.clicks == len(filled.population.clicks)
    assert await _rows(live_idle_world, _UNBALANCED) == []
    await _half_a_year_has_gone_by(live_idle_world, filled.until)
    assert await _rows(live_idle_world, "SELECT 1 FROM stripe_event WHERE signalled_at IS NULL") == []
    used = await _rows(
        live_idle_world, "SELECT count(*), count(DISTINCT expires_at) FROM grant_lot WHERE remaining > 0"
    )
    assert used[0][1] > 1
    assert await _rows(live_idle_world, "SELECT 1 FROM grant_lot WHERE remaining > 0 AND remaining < minutes LIMIT 1")


async def _half_a_year_has_gone_by(world: World, until: datetime) -> None:
    heard = (
        "SELECT min(received_at), max(received_at), count(DISTINCT date_trunc('month', received_at)) FROM stripe_event"
    )
    ((first, last, months),) = await _rows(world, heard)
    assert until - HISTORY < first < until - HISTORY + timedelta(days=1)
    assert until - timedelta(days=31) < last < until
    assert months >= 6
    # What was due was swept when it was, not all of it today.
    assert await _rows(world, "SELECT 1 FROM grant_lot WHERE expired_at > expires_at + interval '2 hours'") == []


_ERASED = "SELECT account_id FROM account WHERE erased_at IS NOT NULL"
_VOIDED = "SELECT coalesce(sum(delta), 0) FROM entry WHERE account_id = :account AND kind = 'void'"
_UNBALANCED = (
    "SELECT grant_id FROM grant_lot JOIN entry USING (grant_id) GROUP BY grant_id, remaining "
    "HAVING sum(delta) <> remaining"
)


async def test_the_same_seed_again_adds_nothing_and_another_one_another_population(
    live_world: World, database_urls: DatabaseUrls
) -> None:
    first = await _fill(live_world, database_urls)
    before = await _rows_of_every_table(live_world)

    again = await _fill(live_world, database_urls)

    assert not again.added
    assert again.until == first.until
    assert again.population == first.population
    assert (again.stages, again.runs, again.behind) == (first.stages, first.runs, ())
    assert await _rows_of_every_table(live_world) == before
    with pytest.raises(OtherSizeError, match=f"--members {FEWEST_MEMBERS}"):
        await _fill(live_world, database_urls, members=FEWEST_MEMBERS + 1)
    assert await _rows_of_every_table(live_world) == before
    other = await _fill(live_world, database_urls, seed=2)
    assert other.added
    after = await _rows_of_every_table(live_world)
    assert after["account"] == before["account"] + FEWEST_MEMBERS


class _EnoughError(Exception):
    """Somebody pulled the plug."""


@pytest.mark.parametrize(
    ("what", "share"), [("half a year goes by", 0.5), ("links are followed", 0.5), ("starting their runs", 0.5)]
)
async def test_what_was_cut_short_is_gone_on_with(
    live_world: World, database_urls: DatabaseUrls, what: str, share: float
) -> None:
    def cut_short(now: str, done: int, of: int) -> None:
        if now == what and done >= of * share:
            raise _EnoughError

    with pytest.raises((_EnoughError, ExceptionGroup)):
        await _fill(live_world, database_urls, step=cut_short)
    begun = await _rows(live_world, "SELECT min(created_at) FROM account")

    filled = await _fill(live_world, database_urls)

    assert filled.added
    assert await _rows(live_world, "SELECT min(created_at) FROM account") == begun
    assert set(filled.stages) == set(Stage)
    assert filled.behind == ()
    (clicks,) = (await _rows(live_world, "SELECT sum(clicks) FROM click_count"))[0]
    assert clicks == len(filled.population.clicks)
    assert len(await _rows(live_world, "SELECT 1 FROM referral")) == len(filled.population.signups)
    assert await _rows(live_world, _UNBALANCED) == []


async def test_runs_that_no_worker_takes_up_are_named_and_catch_up_once_one_does(
    live_idle_world: World, database_urls: DatabaseUrls
) -> None:
    filled = await _fill(live_idle_world, database_urls, patience=timedelta(0))
    assert set(filled.behind) == set(filled.runs)

    async with live_idle_world.worker():
        later = await _fill(live_idle_world, database_urls)

    assert not later.added
    assert later.behind == ()


async def test_plans_that_these_members_do_not_buy_are_a_clear_error(
    live_idle_world: World, database_urls: DatabaseUrls
) -> None:
    demo = Demo(database_urls.app, Plans([Plan("gold", "Gold", 100, 100)]), HASHES, live_idle_world.runs)
    with pytest.raises(DemoError, match="power, pro, starter"):
        await demo.fill(1, FEWEST_MEMBERS)
    await demo.close()


# Which stack


def _a_stack(data: Path, **choices: Any) -> dict[str, str]:
    """A folder as a development stack leaves it; gives what its dev.env says."""
    (data / "run").mkdir(parents=True)
    configuration = StackConfiguration(data=data, **choices)
    configuration.write()
    written = {
        "REFERRALS_URL": "http://127.0.0.1:8000",
        "REFERRALS_API_KEY": "the key of the stack",
        "REFERRALS_DATABASE_URL": configuration.postgres.app_url,
        "TEMPORAL_ADDRESS": "127.0.0.1:7233",
    }
    (data / "dev.env").write_text("".join(f"{name}='{value}'\n" for name, value in written.items()))
    return written


def test_the_development_stack_is_filled_without_asking(tmp_path: Path) -> None:
    written = _a_stack(tmp_path)
    for environment in ({}, written, {"REFERRALS_TASK_QUEUE": "others"}):
        stack = chosen_stack(environment, tmp_path, sure=False)
        assert stack.settings.database_url.get_secret_value().endswith(written["REFERRALS_DATABASE_URL"][12:])
        assert stack.temporal["TEMPORAL_ADDRESS"] == "127.0.0.1:7233"
        assert stack.starter == Deployment("http://127.0.0.1:8000", "the key of the stack")
        assert stack.settings.task_queue == environment.get("REFERRALS_TASK_QUEUE", "referrals")


@pytest.mark.parametrize(
    "environment",
    [
        {"REFERRALS_DATABASE_URL": "postgresql://app:password@db.example/referrals"},
        {"TEMPORAL_ADDRESS": "temporal.example:7233"},
    ],
)
def test_servers_that_the_environment_names_are_filled_only_if_somebody_is_sure(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _a_stack(tmp_path)
    with pytest.raises(StackError, match="--yes"):
        chosen_stack(environment, tmp_path, sure=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("REFERRALS_IDENTITY_HASH_KEY", raising=False)
    with pytest.raises(StackError, match="REFERRALS_IDENTITY_HASH_KEY"):
        chosen_stack(environment, tmp_path, sure=True)


@pytest.mark.parametrize("choices", [{"own_postgres": False}, {"own_temporal": False}])
def test_a_development_stack_on_servers_of_others_is_not_taken_for_a_safe_one(
    tmp_path: Path, choices: dict[str, bool]
) -> None:
    written = _a_stack(tmp_path, **choices)
    with pytest.raises(StackError, match="--yes"):
        chosen_stack(written, tmp_path, sure=False)


def test_no_stack_at_all_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="make run"):
        chosen_stack({}, tmp_path, sure=True)


async def test_the_command_fills_the_stack_that_the_environment_names(
    live_world: World, database_urls: DatabaseUrls, dev_server: str, tmp_path: Path
) -> None:
    environment = {
        "REFERRALS_DATABASE_URL": database_urls.app,
        "REFERRALS_IDENTITY_HASH_KEY": IDENTITY_HASH_KEY,
        "REFERRALS_TASK_QUEUE": live_world.task_queue,
        "REFERRALS_DEV_FOLDER": str(tmp_path),
        "TEMPORAL_ADDRESS": dev_server,
    }
    arguments = ("demo", "--members", str(FEWEST_MEMBERS), "--seed", "7")
    status, out, err = await command(*arguments, **environment)
    assert (status, out) == (1, "")
    assert "--yes" in err
    assert await _rows(live_world, "SELECT 1 FROM account") == []

    status, out, err = await command(*arguments, "--yes", **environment)

    assert (status, err) == (0, "")
    assert "12 members (seed 7), half a year up to" in out
    assert all(stage in out for stage in Stage)
    assert "demo7-0001" in out
    assert "\x1b" not in out
    assert len(await _rows(live_world, "SELECT 1 FROM account")) == FEWEST_MEMBERS

    status, out, err = await command(*arguments, "--yes", "--json", **environment)
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert (document["members"], document["seed"], document["added"]) == (FEWEST_MEMBERS, 7, False)
    assert document["stages"].keys() == set(Stage)
    assert document["accounts"]["star"] == "demo7-0001"


@pytest.mark.parametrize("gone", ["REFERRALS_DATABASE_URL", "TEMPORAL_ADDRESS"])
async def test_a_server_that_is_away_is_a_clear_error(
    database_urls: DatabaseUrls, dev_server: str, tmp_path: Path, gone: str
) -> None:
    environment = {
        "REFERRALS_DATABASE_URL": database_urls.app,
        "REFERRALS_IDENTITY_HASH_KEY": IDENTITY_HASH_KEY,
        "REFERRALS_DEV_FOLDER": str(tmp_path),
        "TEMPORAL_ADDRESS": dev_server,
    }
    away = {
        "REFERRALS_DATABASE_URL": "postgresql://app:hidden-password@127.0.0.1:1/x",
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
    }
    status, _, err = await command("demo", "--yes", **(environment | {gone: away[gone]}))
    assert status == 1
    assert "is it running" in err
    assert "Traceback" not in err
    assert "hidden-password" not in err


# `referrals portal`


def test_a_portal_session_is_asked_of_the_deployment_that_is_named_or_else_of_the_development_stack(
    tmp_path: Path,
) -> None:
    with pytest.raises(StackError, match="make run"):
        deployment({}, tmp_path)
    _a_stack(tmp_path)
    assert deployment({}, tmp_path) == Deployment("http://127.0.0.1:8000", "the key of the stack")
    named = {"REFERRALS_URL": "https://refer.example/", "REFERRALS_API_KEY": "another key"}
    assert deployment(named, tmp_path) == Deployment("https://refer.example", "another key")
    for name in named:
        with pytest.raises(StackError, match="set both"):
            deployment({name: named[name]}, tmp_path)


THERE = Deployment("https://refer.example", "a key")


def test_what_is_no_portal_session_is_a_clear_error() -> None:
    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    for answer, complaint in (
        (nobody, "is the stack running"),
        (lambda _: httpx.Response(404, json={"detail": "No such account."}), "404 No such account."),
        (lambda _: httpx.Response(502, text="come again"), "502 come again"),
        (lambda _: httpx.Response(201, json={"url": "https://x.example"}), "no portal session"),
        (lambda _: httpx.Response(201, text="hello"), "no portal session"),
    ):
        with pytest.raises(StackError, match=complaint):
            new_session(THERE, "acct", httpx.MockTransport(answer))
