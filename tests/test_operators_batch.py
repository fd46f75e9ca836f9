"""`referrals batch …`: one thing done to many referrals, each once, whatever is cut short and said again."""

import asyncio
import os
import signal
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from billing.events import reduce_event
from ledger import facts
from program.referral import Stage
from tests.conftest import BIN
from tests.operator_support import Operator, operator_of
from tests.stripe_events import invoice_paid, subscription
from tests.support import HASHES, DatabaseUrls, Member, World, refunded, until
from workflows.messages import review_id

BY = ("--by", "ann", "--note", "one fraudster")
MONTH = timedelta(days=30)


@pytest.fixture
def operator(live_idle_world: World, database_urls: DatabaseUrls) -> Operator:
    return operator_of(live_idle_world, database_urls)


async def friends(world: World, referrer: Member, number: int, *, held: bool) -> dict[str, Member]:
    """Friends of a referrer whose first payment is held, or who have not paid yet, by their referrals."""

    async def one() -> tuple[str, Member]:
        click = await world.click(referrer)
        friend = await world.member("friend")
        if held:
            await world.refund(await world.pay(friend), amount=100)
        await world.sign_up(click, referrer, friend)
        await world.reaches(click.referral_id, Stage.IN_REVIEW if held else Stage.SIGNED_UP)
        return click.referral_id, friend

    return dict(await asyncio.gather(*(one() for _ in range(number))))


async def stages(world: World, referral_ids: Sequence[str]) -> list[Stage]:
    return [(await world.referral(referral_id)).stage for referral_id in referral_ids]


def decided(owner: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Whose referrals were decided about, how often, and what was decided."""
    return owner.execute("SELECT referral_id, count(*), min(action) FROM review GROUP BY 1 ORDER BY 1").fetchall()


async def test_rule_19_what_a_dry_run_counts_is_rejected_and_the_rest_is_refused_in_words(
    live_world: World, operator: Operator, owner: psycopg.Connection
) -> None:
    world, referrer, other = live_world, await live_world.subscriber(), await live_world.subscriber("other")
    held, waiting, others = await asyncio.gather(
        friends(world, referrer, 3, held=True),
        friends(world, referrer, 2, held=False),
        friends(world, other, 1, held=True),
    )
    which = ("--referrer", referrer.account_id)

    dry, text = await asyncio.gather(
        operator.answer("batch", "reject", *BY, *which, "--dry-run"),
        operator.says("batch", "reject", *BY, *which, "--dry-run"),
    )
    assert (dry["chosen"], dry["by_stage"]) == (5, {"in_review": 3, "signed_up": 2})
    assert [(each["words"], each["number"]) for each in dry["refused"]] == [
        ("nothing is held for review: the referral is signed_up", 2)
    ]
    assert {each["referral_id"] for each in dry["sample"]} == {*held, *waiting}
    assert "5 referrals would be acted on; nothing was changed" in text.out
    assert decided(owner) == []
    assert owner.execute("SELECT * FROM batch").fetchall() == []

    done = await operator.answer("batch", "reject", *BY, *which, "--id", "ring-7", status=1)
    again = await operator.answer("batch", "reject", *BY, *which, "--id", "ring-7", status=1)
    shown, listed, something_else = await asyncio.gather(
        operator.says("batch", "resume", "ring-7"),
        operator.answer("batch", "list"),
        operator.refusal("batch", "void", *BY, *which, "--id", "ring-7"),
    )

    assert done["tally"] == again["tally"]
    assert (done["tally"]["chosen"], done["tally"]["done"], done["tally"]["left"]) == (5, 3, 0)
    [refused] = done["tally"]["refused"]
    # The run itself says so, in its words.
    assert (refused["words"], refused["number"]) == ("nothing is in doubt: the referral is signed_up", 2)
    assert set(refused["examples"]) == set(waiting)
    assert await stages(world, [*held]) == [Stage.REFUSED] * 3
    assert await stages(world, [*waiting, *others]) == [Stage.SIGNED_UP, Stage.SIGNED_UP, Stage.IN_REVIEW]
    assert decided(owner) == [(referral_id, 1, "reject") for referral_id in sorted(held)]
    assert shown.status == 1
    assert "batch ring-7, reject: of 5 referrals 3 done, 2 refused, 0 failed, 0 left" in shown.out
    [batch] = listed["batches"]
    assert (batch["order"]["by"], batch["order"]["wanted"]) == ("ann", {"referrer": referrer.account_id})
    assert something_else.startswith("under that id was begun: reject of what is ")


async def test_a_batch_whose_command_is_killed_goes_on_and_never_acts_twice(
    live_world: World, operator: Operator, owner: psycopg.Connection
) -> None:
    world, referrer = live_world, await live_world.subscriber()
    referrals = await friends(world, referrer, 8, held=False)
    command = ["batch", "void", *BY, "--referrer", referrer.account_id, "--id", "cut-short", "--per-second", "1"]
    process = await asyncio.create_subprocess_exec(
        BIN / "referrals", *command, env={**os.environ, **operator.environment}, stdout=asyncio.subprocess.DEVNULL
    )

    async def acted_on() -> int:
        return len(decided(owner))

    await until(acted_on, lambda number: number >= 2)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    so_far = await acted_on()
    assert 2 <= so_far < 8

    # What it decided last may not have been written down as done.
    done = await operator.answer(*command[:-2], "--per-second", "100")

    assert (done["tally"]["done"], done["tally"]["refused"], done["tally"]["left"]) == (8, [], 0)
    assert await stages(world, [*referrals]) == [Stage.VOIDED] * 8
    assert decided(owner) == [(referral_id, 1, "void") for referral_id in sorted(referrals)]


async def test_rule_20_what_was_done_and_not_written_down_is_found_done_and_taken_back_once(
    live_world: World, operator: Operator, owner: psycopg.Connection
) -> None:
    world, referrer = live_world, await live_world.subscriber()
    referral_id, friend = (await _credited(world, referrer))[0]
    await world.handle(referral_id).terminate("as if it were settled")
    owner.execute("REVOKE UPDATE (state, words, at) ON batch_item FROM referrals_app")

    cut = await operator.says("batch", "void", *BY, "--referrer", referrer.account_id, "--id", "one")
    assert cut.status == 2
    assert "referrals: the database: " in cut.err
    owner.execute("GRANT UPDATE (state, words, at) ON batch_item TO referrals_app")
    done = await operator.answer("batch", "resume", "one")

    assert (done["tally"]["done"], done["tally"]["refused"]) == (1, [])
    assert decided(owner) == [(referral_id, 1, "void")]
    journal = owner.execute(
        "SELECT kind, delta FROM entry WHERE account_id = %s ORDER BY entry_id", (friend.account_id,)
    ).fetchall()
    assert journal == [("credit", 90), ("void", -90)]


async def _credited(world: World, referrer: Member) -> list[tuple[str, Member]]:
    [(referral_id, friend)] = (await friends(world, referrer, 1, held=False)).items()
    await world.pay(friend)
    await world.reaches(referral_id, Stage.CREDITED)
    return [(referral_id, friend)]


async def test_rule_20_a_query_of_temporal_s_lists_finds_what_is_approved_also_in_reviews(
    live_world: World, operator: Operator
) -> None:
    world, referrer = live_world, await live_world.subscriber()
    held = await friends(world, referrer, 2, held=True)
    [(marked, friend)] = await _credited(world, referrer)
    now = await world.clock.now()
    await world.handle(marked).terminate("as if it were settled")
    await world.report(*_refund_of(await _invoice(world, friend), friend, now))
    await world.click(referrer)
    query = f"ReferrerAccount = '{referrer.account_id}' AND ExecutionStatus = 'Running'"

    async def found() -> int:
        return int((await operator.answer("batch", "approve", *BY, "--query", query, "--dry-run"))["chosen"])

    # Lists are a moment behind; the mere click is none of it.
    assert await until(found, lambda number: number >= 3) == 3
    done = await operator.answer("batch", "approve", *BY, "--query", query)

    assert done["tally"]["done"] == 3, done
    for referral_id in held:
        await world.reaches(referral_id, Stage.CREDITED)
    assert (await world.referral(marked)).needs_attention is None
    assert (await world.environment.client.get_workflow_handle(review_id(marked)).describe()).close_time is not None


async def _invoice(world: World, friend: Member) -> str:
    async with world.database.transaction() as transaction:
        rows = await transaction.exec_driver_sql(
            "SELECT invoice_id FROM paid_period WHERE customer_id = %s", (friend.customer_id,)
        )
        return str(rows.scalar_one())


def _refund_of(invoice: str, friend: Member, at: Any) -> Any:
    paid = {"data": {"object": {"id": invoice, "customer": friend.customer_id}}}
    return refunded([{}, paid], 100, at)


async def test_rule_6_many_runs_look_again_and_nobody_is_credited_twice(live_world: World, operator: Operator) -> None:
    world, referrer = live_world, await live_world.subscriber()
    paid = await friends(world, referrer, 4, held=False)
    over = await friends(world, referrer, 1, held=False)
    await world.void(f"referral-{next(iter(over))}")
    now = await world.clock.now()
    for friend in paid.values():
        period = (friend.customer_id, friend.subscription_id, now, now + MONTH)
        for event in (subscription(*period), invoice_paid(*period)):
            async with world.database.transaction() as transaction:
                await facts.apply_event(transaction, reduce_event(event), world.plans, HASHES)

    which = ("--referrer", referrer.account_id)
    first, second = await asyncio.gather(
        operator.answer("batch", "retry", *which, status=1), operator.answer("batch", "retry", *which, status=1)
    )

    for tally in (first["tally"], second["tally"]):
        assert tally["done"] == 4
        assert [each["words"] for each in tally["refused"]] == ["it is over: the referral is voided"]
    for referral_id, friend in paid.items():
        await world.reaches(referral_id, Stage.CREDITED)
        assert [lot.minutes for lot in await world.lots(friend)] == [90]
    assert [lot.minutes for lot in await world.lots(referrer)] == [90] * 4


async def test_what_no_worker_answers_is_left_to_go_on_with(
    live_idle_world: World, operator: Operator, owner: psycopg.Connection
) -> None:
    world, referrer = live_idle_world, await live_idle_world.subscriber()
    async with world.worker():
        referrals = await friends(world, referrer, 2, held=False)
    which = ("--stage", "signed_up", "--referrer", referrer.account_id)

    failed = await operator.answer("batch", "void", *BY, *which, "--id", "later", "--patience", "1", status=2)
    assert (failed["tally"]["done"], failed["tally"]["failed"][0]["number"]) == (0, 2)
    assert decided(owner) == []
    async with world.worker():
        done = await operator.answer("batch", "resume", "later")

    assert (done["tally"]["done"], done["tally"]["failed"]) == (2, [])
    assert await stages(world, [*referrals]) == [Stage.VOIDED] * 2


async def test_where_all_fail_a_batch_stops(
    live_idle_world: World, operator: Operator, owner: psycopg.Connection
) -> None:
    referrer = await live_idle_world.subscriber()
    code = (await live_idle_world.click(referrer, start=False)).code
    owner.execute(
        "INSERT INTO account (account_id, created_at) SELECT 'friend-' || n, now() FROM generate_series(1, 60) n"
    )
    owner.execute(
        "INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until,"
        " lapses_at, stage, signed_up_at) SELECT lpad(n::text, 24, '0'), %s, 'x', %s, 'friend-' || n, now(),"
        " now() + '1 d', now() + '2 d', 'signed_up', now() FROM generate_series(1, 60) n",
        (code, referrer.account_id),
    )

    stopped = await operator.answer(
        "batch", "retry", "--stage", "signed_up", "--per-second", "200", "--at-once", "4",
        status=2, TEMPORAL_NAMESPACE="nowhere",
    )  # fmt: skip

    assert stopped["stopped"].startswith("20 failed one after the other: ")
    assert stopped["tally"]["left"] >= 60 - 20 - 4
    assert stopped["tally"]["done"] == 0


async def test_it_is_never_quicker_than_it_was_told_and_shows_its_progress_at_a_terminal_alone(
    live_world: World, operator: Operator, owner: psycopg.Connection
) -> None:
    referrer = await live_world.subscriber()
    await friends(live_world, referrer, 4, held=False)
    terminal, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        BIN / "referrals", "batch", "retry", "--referrer", referrer.account_id, "--id", "slow", "--per-second", "2",
        env={**os.environ, **operator.environment, "TERM": "xterm"}, stdout=asyncio.subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    out, _ = await process.communicate()
    seen = await asyncio.to_thread(_all_of, terminal)
    quiet = await operator.says("batch", "resume", "slow")

    assert "of 4 referrals 4 done" in out.decode()
    assert "4/4" in seen
    assert (quiet.status, quiet.err) == (0, "")
    # From the beginning: how long one of them takes is not its pace.
    [(took,)] = owner.execute("SELECT max(at) - min(begun_at) FROM batch_item JOIN batch USING (batch_id)").fetchall()
    assert took > timedelta(seconds=3 / 2 - 0.05)


def _all_of(terminal: int) -> str:
    text = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # nobody has the other end any more
            break
        text += part
    os.close(terminal)
    return text.decode()


async def test_what_is_no_batch_is_refused_before_anything_is_begun(
    live_idle_world: World, operator: Operator, owner: psycopg.Connection, database_urls: DatabaseUrls
) -> None:
    world, referrer = live_idle_world, await live_idle_world.subscriber()
    async with world.worker():
        await friends(world, referrer, 2, held=False)

    refusals = await asyncio.gather(
        operator.refusal("batch", "void", *BY),
        operator.refusal("batch", "void", *BY, "--reason", "hearsay"),
        operator.refusal("batch", "void", "--by", "ann@example.com", "--note", "x", "--stage", "signed_up"),
        operator.refusal("batch", "void", *BY, "--stage", "signed_up", "--at-most", "1"),
        operator.refusal("batch", "void", *BY, "--stage", "signed_up", "--id", "No id"),
        operator.refusal("batch", "resume", "nobody-s"),
        operator.refusal("batch", "void", *BY, "--query", "Plan is 'pro'"),
    )

    assert refusals[0] == "say which: --query, --stage, --referrer, --reason or --needs-attention"
    assert refusals[1].startswith("--reason is one of account-erased, ")
    assert "e-mail" in refusals[2]
    assert refusals[3] == "more than 1 referrals are like that: narrow it down, or give --at-most"
    assert refusals[4].startswith("--id has up to 40 small letters")
    assert refusals[5] == "no batch nobody-s was ever begun"
    assert refusals[6].startswith("Temporal: ")
    assert owner.execute("SELECT * FROM batch").fetchall() == []
    with (
        psycopg.connect(database_urls.app.replace("+psycopg", "")) as application,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        application.execute("DELETE FROM batch_item")
