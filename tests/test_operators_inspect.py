"""`referrals inspect` and `referrals list`: what operators see of one referral, and of many."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from ledger.database import Database
from program.doubts import Action
from program.plans import Plans
from program.referral import Stage
from tests.operator_support import Operator, operator_of
from tests.support import Books, Clock, DatabaseUrls, Member, World, until

UI = "http://ui.example:8233"
MINUTE = timedelta(minutes=1)


@pytest.fixture
def operator(live_idle_world: World, database_urls: DatabaseUrls) -> Operator:
    return operator_of(live_idle_world, database_urls)


@pytest.fixture
def books(database: Database, plans: Plans, clock: Clock) -> Books:
    return Books(database, plans, clock)


async def signed_up(world: World) -> tuple[str, Member, Member]:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    return click.referral_id, referrer, friend


async def test_the_whole_story_of_a_referral_is_told(live_world: World, operator: Operator) -> None:
    world = live_world
    referral_id, referrer, friend = await signed_up(world)
    payment = await world.pay(friend)
    await world.reaches(referral_id, Stage.CREDITED)
    await world.refund(payment, amount=100)
    await world.void(f"referral-{referral_id}")
    await world.outcome(referral_id)

    seen, text = await asyncio.gather(
        operator.answer("inspect", referral_id, REFERRALS_UI_URL=UI),
        operator.says("inspect", f"referral-{referral_id}", REFERRALS_UI_URL=UI),
    )

    story = seen["story"]
    assert story["referral"]["stage"] == "credited"
    assert story["referral"]["referrer_account_id"] == referrer.account_id
    assert [step["stage"] for step in story["steps"]] == ["signed_up", "credited", "credited", "credited"]
    assert "Marked for review" in story["steps"][2]["reason"]
    [paid] = story["payments"]
    assert (paid["invoice_id"], paid["plan"], paid["qualifying"]) == (payment[1]["data"]["object"]["id"], "pro", True)
    assert (paid["amount_paid"], paid["refunded"], paid["disputed"]) == (2900, 100, False)
    assert paid["prices"][0]["plan"] == "pro"
    [decision] = story["reviews"]
    assert (decision["action"], decision["by"], decision["note"]) == ("void", "ann", "looked at it")
    assert decision["minutes_voided"] == {"referrer": 90, "referee": 90}
    assert {grant["role"]: grant["account_id"] for grant in story["grants"]} == {
        "referrer": referrer.account_id,
        "referee": friend.account_id,
    }
    for grant in story["grants"]:
        assert [(entry["kind"], entry["delta"]) for entry in grant["journal"]] == [("credit", 90), ("void", -90)]
    assert {message["type"] for message in story["messages"]} >= {"referral.signed_up", "bonus.credited"}
    assert seen["run"]["run"]["status"] == "COMPLETED"
    link = f"{UI}/namespaces/default/workflows/referral-{referral_id}/{seen['run']['run']['run_id']}/history"
    assert seen["run"]["link"] == link
    assert seen["disagreement"] is None
    for said in ("ann: ", "void", paid["invoice_id"], "-90", "bonus.credited", link):
        assert said.strip(": ") in text.out
    assert text.status == 0
    assert "disagree" not in text.out


async def test_rule_24_nobody_is_named_but_by_an_id(live_world: World, operator: Operator) -> None:
    referral_id, _, friend = await signed_up(live_world)

    said = await operator.says("inspect", referral_id, "--json")

    assert friend.account_id in said.out
    assert "@" not in said.out


async def test_of_a_mere_click_there_is_what_temporal_holds(live_idle_world: World, operator: Operator) -> None:
    referrer = await live_idle_world.subscriber()
    click = await live_idle_world.click(referrer)

    seen, text, unknown = await asyncio.gather(
        operator.answer("inspect", click.referral_id),
        operator.says("inspect", click.referral_id),
        operator.refusal("inspect", "0123456789abcdef01234567"),
    )

    assert seen["story"] is None
    assert (seen["click"]["stage"], seen["click"]["referrer"]) == ("clicked", referrer.account_id)
    assert seen["run"]["run"]["status"] == "RUNNING"
    assert seen["run"]["link"] is None
    assert "nobody has signed up with this click yet" in text.out
    assert unknown == "there is no referral 0123456789abcdef01234567, or no longer"


async def test_where_the_ledger_and_the_run_disagree_it_is_said(live_world: World, operator: Operator) -> None:
    referral_id, _, _ = await signed_up(live_world)
    await live_world.handle(referral_id).terminate("by mistake")

    seen, text = await asyncio.gather(operator.answer("inspect", referral_id), operator.says("inspect", referral_id))

    assert seen["disagreement"] == "the ledger waits at signed_up, and the run is over (terminated, at signed_up)"
    assert "The ledger and the run disagree" in text.out


async def test_without_temporal_the_ledger_s_part_is_told(books: Books, operator: Operator) -> None:
    referral_id = await books.sign_up(await books.subscriber(), await books.someone())

    seen, text, unknown, malformed = await asyncio.gather(
        operator.answer("inspect", referral_id, TEMPORAL_ADDRESS="127.0.0.1:1"),
        operator.says("inspect", referral_id, TEMPORAL_ADDRESS="127.0.0.1:1"),
        operator.refusal("inspect", "0123456789abcdef01234567", TEMPORAL_ADDRESS="127.0.0.1:1"),
        operator.refusal("inspect", referral_id, TEMPORAL_UI_URL="ui.example"),
    )

    assert seen["story"]["referral"]["stage"] == "signed_up"
    assert (seen["run"], seen["disagreement"]) == (None, None)
    assert seen["unreachable"]
    assert "Temporal cannot be reached: " in text.out
    assert unknown.startswith("Temporal: ")
    assert "  REFERRALS_UI_URL: " in malformed


async def test_what_keeps_a_run_is_said(live_idle_world: World, operator: Operator) -> None:
    world = live_idle_world
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)

    async def problem() -> str:
        return str((await operator.answer("inspect", click.referral_id))["run"]["run"]["problem"])

    assert "no worker takes it up" in await until(problem, lambda said: said != "None")


def ids(page: dict[str, list[dict[str, str]]]) -> list[str]:
    return [referral["referral_id"] for referral in page["referrals"]]


async def many(books: Books) -> tuple[Member, Sequence[str]]:
    """A referrer with five friends: three wait, one is held, one was refused; and another referrer's friend."""
    referrer = await books.subscriber()
    waiting = [await books.sign_up(referrer, await books.someone(), clicked=minutes * MINUTE) for minutes in (5, 4, 3)]
    held = await books.held(referrer, await books.someone())
    refused = await books.sign_up(referrer, await books.someone(age=timedelta(days=9)), clicked=2 * MINUTE)
    await books.sign_up(await books.subscriber("other"), await books.someone(), clicked=6 * MINUTE)
    return referrer, [*waiting, held, refused]


async def test_lists_are_narrowed_down_and_paged(books: Books, operator: Operator) -> None:
    referrer, [first, second, third, held, refused] = await many(books)

    by_referrer, waiting, doubtful, existing, attention, page, text = await asyncio.gather(
        operator.answer("list", "--referrer", referrer.account_id),
        operator.answer("list", "--stage", "signed_up", "--stage", "credited", "--referrer", referrer.account_id),
        operator.answer("list", "--reason", "refunded-in-part"),
        operator.answer("list", "--reason", "existing-account"),
        operator.answer("list", "--needs-attention"),
        operator.answer("list", "--limit", "4"),
        operator.says("list", "--limit", "2"),
    )

    assert ids(by_referrer) == [held, refused, third, second, first]
    assert by_referrer["next_cursor"] is None
    assert ids(waiting) == [third, second, first]
    assert ids(doubtful) == ids(attention) == [held]
    assert ids(existing) == [refused]
    rest = await operator.answer("list", "--limit", "4", "--cursor", page["next_cursor"])
    assert ids(page) == [held, refused, third, second]
    assert ids(rest)[0] == first
    assert len(ids(rest)) == 2
    assert rest["next_cursor"] is None
    assert held in text.out
    assert "more: --cursor " in text.out


async def test_a_list_of_what_nobody_knows_is_refused(operator: Operator) -> None:
    reason, stage, cursor, none = await asyncio.gather(
        operator.refusal("list", "--reason", "hearsay"),
        operator.says("list", "--stage", "paid"),
        operator.refusal("list", "--cursor", "bm90IGEgY3Vyc29y"),
        operator.answer("list"),
    )

    assert reason.startswith("--reason is one of account-erased, ")
    assert stage.status == 2
    assert "signed_up" in stage.err
    assert cursor == "--cursor: give next_cursor of the page before, unchanged"
    assert none == {"referrals": [], "next_cursor": None}


async def test_without_a_database_it_is_said_what_is_missing(operator: Operator) -> None:
    missing, away = await asyncio.gather(
        operator.refusal("list", REFERRALS_DATABASE_URL=""),
        operator.refusal("list", REFERRALS_DATABASE_URL="postgresql://app:secret@127.0.0.1:1/nowhere"),
    )

    assert "REFERRALS_DATABASE_URL" in missing
    assert away.startswith("the database: ")
    assert "secret" not in away


async def test_the_console_script_has_every_command(books: Books, operator: Operator) -> None:
    referral_id = await books.sign_up(await books.subscriber(), await books.someone())

    said, help_ = await asyncio.gather(operator.says_at_a_shell("list", "--json"), operator.says_at_a_shell("--help"))

    assert (said.status, said.err) == (0, "")
    assert ids(said.document) == [referral_id]
    for command in ("inspect", "list", "review", "void", "attribute", "check", "replay", "doctor", "migrate"):
        assert f"\n  {command} " in help_.out


async def test_a_voided_referral_is_listed_as_such(books: Books, operator: Operator) -> None:
    referral_id = await books.credited(await books.subscriber(), await books.someone())
    await books.decide(referral_id, Action.VOID)

    assert "credited, void" in (await operator.says("list")).out
