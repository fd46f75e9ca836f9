"""`referrals what-if`: a changed rule, tried over past referrals by the rules themselves, and nothing changed by it."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from cli import what_if
from ledger import accounts, hindsight, invariants, signals
from ledger.accounts import Profile
from ledger.database import Database
from program.doubts import Action
from program.hindsight import Rules
from program.plans import Plans
from program.referral import Stage
from program.signals import SignalPolicy
from runtime.settings import PROJECT
from tests.operator_support import Operator
from tests.support import HASHES, Books, DatabaseUrls, Member

DAY = timedelta(days=1)
PLANS = (PROJECT / "plans.toml").read_text(encoding="utf-8")


@pytest.fixture
def operator(database_urls: DatabaseUrls) -> Operator:
    return Operator({"REFERRALS_DATABASE_URL": database_urls.app})


@pytest.fixture
def ledger_as_it_is(owner: psycopg.Connection) -> "Ledger":
    return Ledger(owner)


class Ledger:
    """All that is in the database, to see that it stays so."""

    def __init__(self, owner: psycopg.Connection) -> None:
        self._owner = owner

    def everything(self) -> dict[str, Any]:
        names = self._owner.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return {
            name: self._owner.execute(f"SELECT * FROM {name} t ORDER BY t::text").fetchall()  # noqa: S608
            for (name,) in names
        }


def plans_with(folder: Path, old: str, new: str) -> str:
    file = folder / "other-plans.toml"
    assert old in PLANS
    file.write_text(PLANS.replace(old, new), encoding="utf-8")
    return str(file)


def groups(found: list[dict[str, Any]]) -> list[tuple[str, str, int, int]]:
    return [(each["now"], each["tried"], each["number"], each["minutes"]) for each in found]


async def test_rule_3_another_share_or_other_plans_credit_more_and_less_and_nothing_is_changed(
    books: Books, operator: Operator, ledger_as_it_is: Ledger, tmp_path: Path
) -> None:
    referrer = await books.subscriber()
    pro = [await books.credited(referrer, await books.someone()) for _ in range(2)]
    starter = await books.credited(referrer, await books.someone(), plan="starter")
    waiting = await books.sign_up(referrer, await books.someone())
    before = ledger_as_it_is.everything()

    share, plans, unknown, text = await asyncio.gather(
        operator.answer("what-if", "--bonus-percent", "12.5"),
        operator.answer("what-if", "--plans", plans_with(tmp_path, "minutes = 360", "minutes = 400")),
        operator.answer("what-if", "--plans", _without_pro(tmp_path)),
        operator.says("what-if", "--bonus-percent", "50"),
    )

    assert share["changed"] == ["a bonus of 12.5% instead of 25%"]
    assert share["looked_at"] == 4
    # 12.5% of 360 is 45; of 90 it is 11.25.
    assert (share["now"], share["tried"]) == (
        {"credited": 3, "minutes": 2 * (90 + 90 + 22)},
        {"credited": 3, "minutes": 2 * (45 + 45 + 11)},
    )
    assert groups(share["differences"]) == [
        ("credited for pro, 90 minutes each", "credited for pro, 45 minutes each", 2, -180),
        ("credited for starter, 22 minutes each", "credited for starter, 11 minutes each", 1, -22),
    ]
    assert set(share["differences"][0]["examples"]) == set(pro)
    assert share["differences"][1]["examples"] == [starter]
    assert waiting not in str(share)
    assert groups(plans["differences"]) == [
        ("credited for pro, 90 minutes each", "credited for pro, 100 minutes each", 2, 40)
    ]
    assert groups(unknown["differences"]) == [("credited for pro, 90 minutes each", "waits: unknown-price", 2, -360)]
    assert (share["otherwise"], share["undecidable"]) == ([], [])
    assert "nothing was changed" in text.out
    assert "+406" in text.out
    assert "What people would have done otherwise is not known" in text.out
    assert ledger_as_it_is.everything() == before


def _without_pro(folder: Path) -> str:
    head, pro, rest = PLANS.partition('[[plan]]\nid = "pro"')
    assert pro
    file = folder / "without-pro.toml"
    file.write_text(head + "[[plan]]" + rest.partition("[[plan]]")[2], encoding="utf-8")
    return str(file)


async def test_rule_15_a_shorter_window_lapses_what_signed_up_later_and_a_longer_one_credits_it(
    books: Books, operator: Operator
) -> None:
    referrer = await books.subscriber()
    soon = await books.credited(referrer, await books.someone())
    late = await books.sign_up(referrer, friend := await books.someone(), clicked=40 * DAY)
    await _pays(books, late, friend)
    lapsed, own = await _lapsed(books, referrer), await books.someone(age=9 * DAY)
    # Known before, whatever the window is.
    refused = await books.sign_up(referrer, own)

    shorter, longer, newer = await asyncio.gather(
        operator.answer("what-if", "--attribution-window", "30d"),
        operator.answer("what-if", "--attribution-window", "120d"),
        operator.answer(
            "what-if", "--attribution-window", "30d", "--since", str((await books.clock.now() - DAY).date())
        ),
    )

    assert groups(shorter["differences"]) == [
        ("credited for pro, 90 minutes each", "lapsed: reported-late", 1, -180),
    ]
    assert shorter["differences"][0]["examples"] == [late]
    assert groups(longer["differences"]) == [("lapsed", "credited for pro, 90 minutes each", 1, 180)]
    assert longer["differences"][0]["examples"] == [lapsed]
    assert any("a longer window would bring more" in words for words in longer["limits"])
    assert (newer["looked_at"], newer["differences"]) == (2, [])
    assert {soon, refused}.isdisjoint(_all_examples(shorter) | _all_examples(longer))
    assert shorter["otherwise"] == longer["otherwise"] == []


async def _pays(books: Books, referral_id: str, friend: Member) -> None:
    await books.put(friend, linked=True)
    await books.pay(friend)
    await books.credit(referral_id)


async def _lapsed(books: Books, referrer: Member) -> str:
    """A signup 100 days after the click, within the days of grace of 95; the friend has paid."""
    friend = await books.someone()
    click = await books.click(referrer, at=await books.clock.now() - 100 * DAY, window=95 * DAY)
    reserved = await books.reserve(click, referrer, friend)
    assert (await books.attribute(reserved.referral_id)).stage is Stage.LAPSED
    await books.put(friend, linked=True)
    await books.pay(friend)
    return reserved.referral_id


def _all_examples(found: dict[str, Any]) -> set[str]:
    return {example for each in found["differences"] for example in each["examples"]}


async def test_rule_19_a_sign_that_is_turned_on_holds_who_shows_it_and_says_of_whom_nothing_is_known(
    books: Books, operator: Operator
) -> None:
    referrer = await books.subscriber()
    plain = await books.credited(referrer, await books.someone())
    twin = await _signed_up_at_home(books, referrer)
    async with books.database.transaction() as transaction:
        await signals.record_card_check(transaction, plain, await _invoice_of(books, plain), same_card=True)
    thrown = await books.credited(referrer, friend := await books.someone())
    async with books.database.transaction() as transaction:
        profile = Profile(friend.account_id, friend.email, friend.created_at, disposable_email=True)
        await accounts.put(transaction, profile, HASHES)

    device, cards, marked, crowd, off = await asyncio.gather(
        operator.answer("what-if", "--same-device", "hold"),
        operator.answer("what-if", "--same-card"),
        operator.answer("what-if", "--disposable-email", "mark"),
        operator.answer("what-if", "--many-signups", "hold", "--signups-a-day", "2"),
        operator.answer(
            "what-if", "--disposable-email", "off", "--signups-a-day", "7", REFERRALS_SIGNAL_DISPOSABLE_EMAIL="hold"
        ),
    )

    credited = "credited for pro, 90 minutes each"
    assert groups(device["differences"]) == [(credited, "held: same-device", 1, -180)]
    assert device["differences"][0]["examples"] == [twin]
    assert groups(cards["differences"]) == [(credited, "held: same-card", 1, -180)]
    assert cards["differences"][0]["examples"] == [plain]
    [unknown] = cards["undecidable"]
    assert (unknown["number"], set(unknown["examples"])) == (2, {twin, thrown})
    assert cards["now"]["credited"] == 1, "what cannot be said is in neither sum"
    assert marked["differences"] == []
    assert groups(crowd["differences"]) == [(credited, "held: many-signups", 1, -180)]
    # By the rules as they are it would be held by now; it was credited when they were others.
    assert groups(off["otherwise"]) == [(credited, "held: disposable-email", 1, 0)]
    assert groups(off["differences"]) == [("held: disposable-email", credited, 1, 180)]


async def _signed_up_at_home(books: Books, referrer: Member) -> str:
    """A friend who signed up from where the referrer is, and was credited."""
    friend = await books.someone()
    home = HASHES.device("203.0.113.7", "Firefox")
    referral_id = await books.credited(referrer, friend)
    async with books.database.transaction() as transaction:
        await signals.saw_device(transaction, referrer.account_id, home)
        await signals.saw_device(transaction, friend.account_id, home, at_signup=True)
    return referral_id


async def _invoice_of(books: Books, referral_id: str) -> str:
    [(invoice,)] = await books.rows(
        "SELECT qualifying_invoice FROM referral WHERE referral_id = :referral_id", referral_id=referral_id
    )
    return str(invoice)


async def test_rule_20_what_operators_decided_and_what_was_refunded_later_is_decided_as_it_was(
    books: Books, operator: Operator
) -> None:
    referrer = await books.subscriber()
    approved, rejected, voided = [await books.held(referrer, await books.someone()) for _ in range(3)]
    await books.decide(approved, Action.APPROVE)
    await books.decide(rejected, Action.REJECT)
    await books.decide(voided, Action.VOID)
    held = await books.held(referrer, await books.someone())

    found = await operator.answer("what-if", "--bonus-percent", "50")

    assert found["otherwise"] == []
    assert groups(found["differences"]) == [
        ("credited for pro, 90 minutes each", "credited for pro, 180 minutes each", 1, 180)
    ]
    assert found["differences"][0]["examples"] == [approved]
    assert held not in str(found)


async def test_it_reads_alone_and_however_many_there_are_a_page_at_a_time(
    database: Database, owner: psycopg.Connection, books: Books, plans: Plans
) -> None:
    code = (await books.link(referrer := await books.subscriber())).code
    owner.execute(
        "INSERT INTO account (account_id, created_at) SELECT 'friend-' || n, now() FROM generate_series(1, 1201) n"
    )
    owner.execute(
        "INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until,"
        " lapses_at, stage, signed_up_at) SELECT lpad(n::text, 24, '0'), %s, 'x', %s, 'friend-' || n, now(),"
        " now() + '1 d', now() + '2 d', 'signed_up', now() FROM generate_series(1, 1201) n",
        (code, referrer.account_id),
    )
    said: list[int] = []
    now = Rules(plans, SignalPolicy())

    found = await what_if.try_over_the_past(
        database, now, replace(now, window=timedelta(minutes=1)), None, 3, said.append
    )

    assert (found.looked_at, found.differences) == (1201, [])
    assert said == [500, 1000]
    async with database.snapshot() as transaction:
        await invariants.begin(transaction)
        pasts = hindsight.past(transaction, None, 20)
        await anext(pasts)
        cursors = await transaction.execute(text("SELECT count(*) FROM pg_cursors"))
        assert cursors.scalar_one() == 1, "all was read before the first was looked at"
        assert len([past async for past in pasts]) == 1200
        with pytest.raises(DBAPIError, match="read-only"):
            await accounts.put(transaction, Profile("acct", "a@example.com", await books.clock.now()), HASHES)


async def test_what_cannot_be_tried_is_refused(operator: Operator, tmp_path: Path) -> None:
    async def refusal(*arguments: str, **settings: str) -> str:
        said = await operator.says("what-if", *arguments, **settings)
        assert (said.status, said.out) == (2, ""), said.out
        return said.err.removeprefix("referrals: ")

    nothing, percent, word, window, plans, none, away = await asyncio.gather(
        refusal(),
        refusal("--bonus-percent", "101"),
        refusal("--bonus-percent", "much"),
        refusal("--attribution-window", "0d"),
        refusal("--plans", str(tmp_path / "none.toml")),
        refusal("--bonus-percent", "0.1"),
        refusal("--bonus-percent", "30", REFERRALS_DATABASE_URL="postgresql://app:secret@127.0.0.1:1/nowhere"),
    )

    assert nothing.startswith("nothing is changed: give --plans")
    assert percent == "--bonus-percent is more than 0, and 100 at most\n"
    assert "much" in word
    assert "must be longer than nothing" in window
    assert "none.toml: No such file" in plans
    assert none == "starter would bring a bonus of none\n"
    assert away.startswith("the database: ")
    assert "secret" not in away
