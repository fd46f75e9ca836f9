"""`referrals review`, `referrals void` and `referrals attribute`: what operators decide and repair."""

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from temporalio.service import RPCError

from ledger import attributions, referrals
from ledger.accounts import Link, UnknownAccountError
from ledger.attributions import NotAttributableError, Vouched
from ledger.database import Database
from ledger.referrals import ClickedLink, Reservation
from program.eligibility import Refusal
from program.plans import Plans
from program.referral import AttributionWindow, Stage
from tests.operator_support import Operator, operator_of
from tests.support import Books, Clock, DatabaseUrls, Member, World
from workflows.messages import review_id, workflow_id

DAY = timedelta(days=1)
WINDOW = timedelta(days=90)
BY = ("--by", "ann", "--note", "looked at it")


@pytest.fixture
def operator(live_idle_world: World, database_urls: DatabaseUrls) -> Operator:
    return operator_of(live_idle_world, database_urls)


@pytest.fixture
def books(database: Database, plans: Plans, clock: Clock) -> Books:
    return Books(database, plans, clock)


async def credited(world: World) -> tuple[str, Member, list[Any]]:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    payment = await world.pay(friend)
    await world.reaches(click.referral_id, Stage.CREDITED)
    return click.referral_id, friend, payment


async def held(world: World) -> tuple[str, Member]:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    payment = await world.pay(friend)
    await world.refund(payment, amount=100)
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.IN_REVIEW)
    return click.referral_id, friend


async def test_rule_19_a_held_referral_is_approved_and_another_rejected(live_world: World, operator: Operator) -> None:
    (approved, friend), (rejected, other) = await held(live_world), await held(live_world)

    yes, no = await asyncio.gather(
        operator.answer("review", approved, "--approve", *BY),
        operator.answer("review", f"referral-{rejected}", "--reject", *BY),
    )

    assert (yes["outcome"]["stage"], yes["run"], yes["by"]) == ("credited", workflow_id(approved), "ann")
    assert no["outcome"]["stage"] == "refused"
    assert no["outcome"]["reason"].startswith("Declined")
    assert len(await live_world.lots(friend)) == 1
    assert await live_world.lots(other) == []


async def test_rule_20_what_is_void_is_void_once(live_world: World, operator: Operator) -> None:
    referral_id, friend, _ = await credited(live_world)

    void = await operator.answer("void", referral_id, *BY)
    await live_world.outcome(referral_id)
    again, approve = await asyncio.gather(
        operator.refusal("void", referral_id, *BY), operator.refusal("review", referral_id, "--approve", *BY)
    )

    assert void["outcome"]["stage"] == "credited"
    assert void["outcome"]["minutes_voided"] == {"referrer": 90, "referee": 90}
    assert again == "refused: there is nothing to void: the referral is void"
    assert approve == "refused: nothing is in doubt: the referral is credited"
    assert [(lot.remaining, lot.state) for lot in await live_world.lots(friend)] == [(0, "void")]
    with pytest.raises(RPCError, match="not found"):
        await live_world.environment.client.get_workflow_handle(review_id(referral_id)).describe()


async def test_rule_20_where_the_run_is_closed_a_review_decides(live_world: World, operator: Operator) -> None:
    referral_id, friend, _ = await credited(live_world)
    await live_world.handle(referral_id).terminate("as if it were settled")

    flawed = await operator.refusal("void", referral_id, "--by", "ann@example.com", "--note", "chargeback")
    said = await operator.says("void", referral_id, "--by", "ann", "--note", "chargeback lost")

    assert "e-mail" in flawed
    assert said.status == 0, said.err
    assert said.out.startswith(f"{referral_id}: void, by ann; the referral is credited; unused minutes taken back: 90 ")
    outcome = await live_world.environment.client.get_workflow_handle(review_id(referral_id)).result()
    assert outcome["minutes_voided"] == {"referrer": 90, "referee": 90}
    assert {lot.state for lot in await live_world.lots(friend)} == {"void"}


async def test_rule_20_a_mark_on_a_closed_run_is_cleared(live_world: World, operator: Operator) -> None:
    referral_id, _, payment = await credited(live_world)
    await live_world.handle(referral_id).terminate("as if it were settled")
    await live_world.refund(payment, amount=100)

    cleared = await operator.answer("review", referral_id, "--approve", *BY)

    assert cleared["run"] == review_id(referral_id)
    assert (await live_world.referral(referral_id)).needs_attention is None


async def test_an_approval_that_nobody_could_follow_up_is_refused(live_world: World, operator: Operator) -> None:
    referral_id, friend = await held(live_world)
    await live_world.handle(referral_id).terminate("by mistake")

    assert f"reset {workflow_id(referral_id)} first" in await operator.refusal("review", referral_id, "--approve", *BY)
    assert (await operator.answer("void", referral_id, *BY))["outcome"]["stage"] == "voided"
    assert await live_world.lots(friend) == []


async def test_what_cannot_be_decided_is_refused_in_the_run_s_words(live_world: World, operator: Operator) -> None:
    referral_id, _, _ = await credited(live_world)
    click = await live_world.click(await live_world.subscriber())

    refusals = await asyncio.gather(
        operator.refusal("review", referral_id, "--reject", *BY),
        operator.refusal("void", referral_id, "--by", " ", "--note", "why"),
        operator.refusal("void", click.referral_id, *BY),
        operator.refusal("review", referral_id, *BY),
        operator.refusal("review", referral_id, "--approve", "--reject", *BY),
    )

    assert [*refusals] == [
        "refused: nothing is in doubt: the referral is credited",
        "refused: say who decides: by is empty",
        "refused: nobody is known to have signed up with that referral",
        "give either --approve or --reject",
        "give either --approve or --reject",
    ]
    assert len(await live_world.events(click.referral_id)) == 1, "a mere click was woken"


async def test_without_a_worker_the_waiting_ends_and_nothing_is_decided(
    live_idle_world: World, operator: Operator
) -> None:
    async with live_idle_world.worker():
        referral_id, friend, _ = await credited(live_idle_world)

    said = await operator.refusal("void", referral_id, *BY, "--patience", "2")

    assert said.startswith("not decided within 2 seconds: ")
    assert {lot.state for lot in await live_idle_world.lots(friend)} == {"active"}


# A signup that lost its link


async def test_rule_3_a_signup_that_lost_its_link_is_attributed_and_credited_once(
    live_world: World, operator: Operator, owner: psycopg.Connection
) -> None:
    world = live_world
    referrer, other = await world.subscriber(), await world.subscriber("other")
    code = (await world.click(referrer)).code
    await world.click(other)
    friend = await world.member("friend")
    await world.pay(friend)

    done = await operator.answer("attribute", friend.account_id, "--code", code.upper(), *BY)
    await world.reaches(done["referral_id"], Stage.CREDITED)
    again, others = await asyncio.gather(
        operator.answer("attribute", friend.account_id, "--referrer", referrer.account_id, *BY),
        operator.refusal("attribute", friend.account_id, "--referrer", other.account_id, *BY),
    )

    assert (done["stage"] in ("signed_up", "credited"), done["known"]) == (True, False)
    assert (again["referral_id"], again["stage"], again["known"]) == (done["referral_id"], "credited", True)
    assert others.startswith(f"not attributed: the account belongs to referral {done['referral_id']} of another")
    assert len(await world.lots(friend)) == len(await world.lots(referrer)) == 1
    assert owner.execute("SELECT referral_id, decided_by, note FROM attribution").fetchall() == [
        (done["referral_id"], "ann", "looked at it")
    ]
    seen = await operator.says("inspect", done["referral_id"])
    assert "by ann: looked at it" in seen.out


async def test_what_cannot_be_attributed_is_refused_and_leaves_nothing(
    live_idle_world: World, operator: Operator, owner: psycopg.Connection
) -> None:
    world = live_idle_world
    referrer, friend = await world.subscriber(), await world.member("friend")
    code = (await world.click(referrer, start=False)).code

    refusals = await asyncio.gather(
        operator.refusal("attribute", friend.account_id, *BY),
        operator.refusal("attribute", friend.account_id, "--code", "nobodys234", *BY),
        operator.refusal("attribute", "acct-nobody", "--code", code, *BY),
        operator.refusal("attribute", friend.account_id, "--code", code, "--by", "ann@example.com", "--note", "why"),
    )

    assert refusals[0] == "give either --code or --referrer"
    assert "there is no link with the code nobodys234" in refusals[1]
    assert "the backend has reported no account acct-nobody" in refusals[2]
    assert "e-mail" in refusals[3]
    assert owner.execute("SELECT count(*) FROM referral").fetchone() == (0,)


async def vouch(books: Books, friend: Member, link: Link) -> Reservation:
    async with books.database.transaction() as transaction:
        return await attributions.vouch(transaction, Vouched(friend.account_id, link, "ann", "looked at it"), WINDOW)


async def old_link(books: Books, clock: Clock, days: int) -> tuple[Member, Link]:
    """A referrer whose link was made that many days ago."""
    clock.advance(-days * DAY)
    referrer = await books.subscriber(length=timedelta(days=300))
    link = await books.link(referrer)
    clock.advance(days * DAY)
    return referrer, link


async def friend_of(books: Books, *, age: timedelta) -> Member:
    friend = await books.someone(age=age)
    await books.put(friend, linked=True)
    return friend


async def test_rule_15_an_operator_may_go_beyond_the_7_days_of_a_code_but_not_beyond_the_click_s_end(
    books: Books, clock: Clock
) -> None:
    _, link = await old_link(books, clock, 120)

    late = await vouch(books, await friend_of(books, age=96 * DAY), link)
    assert (await books.attribute(late.referral_id)).stage is Stage.SIGNED_UP

    with pytest.raises(NotAttributableError, match="rule 15"):
        await vouch(books, await friend_of(books, age=98 * DAY), link)


async def test_rule_10_a_code_that_was_reported_too_late_is_repaired(books: Books, clock: Clock) -> None:
    """The backend's own late call is refused, for the account looks old; an operator knows better."""
    referrer, link = await old_link(books, clock, 30)
    friend = await friend_of(books, age=8 * DAY)
    late = ClickedLink(
        referrals.derived_id(link.code, friend.account_id), link.code, "code", AttributionWindow(await clock.now())
    )
    refused = await books.reserve(late, referrer, friend)
    assert (await books.attribute(refused.referral_id)).stage is Stage.REFUSED

    reserved = await vouch(books, friend, link)

    assert reserved.referral_id != refused.referral_id
    assert (await books.attribute(reserved.referral_id)).stage is Stage.SIGNED_UP


async def test_rule_10_a_friend_who_is_somebody_s_already_stays_so(books: Books, clock: Clock) -> None:
    referrer, link = await old_link(books, clock, 30)
    friend = await books.someone()
    first = await books.sign_up(await books.subscriber("first"), friend)
    with pytest.raises(NotAttributableError, match=first):
        await vouch(books, friend, link)

    own = await books.someone()
    known = await books.sign_up(referrer, own)
    stands = await vouch(books, own, link)
    assert (stands.referral_id, stands.stage) == (known, Stage.SIGNED_UP)
    assert await books.rows("SELECT * FROM attribution") == []


async def test_a_signup_that_was_reported_and_never_decided_is_taken_up(books: Books) -> None:
    referrer = await books.subscriber()
    friend = await books.someone()
    link = await books.link(referrer)
    reserved = await books.reserve(await books.click(referrer), referrer, friend)

    assert (await vouch(books, friend, link)).referral_id == reserved.referral_id
    assert await books.rows("SELECT referral_id FROM attribution") == [(reserved.referral_id,)]


async def test_rule_18_nobody_is_attributed_to_themselves(books: Books, clock: Clock) -> None:
    referrer, link = await old_link(books, clock, 30)
    twin = await friend_of(books, age=DAY)
    same_email = Member(f"{twin.account_id}-2", referrer.email, "cus_other", "sub_other", twin.created_at)
    await books.put(same_email)

    with pytest.raises(NotAttributableError, match=Refusal.SAME_EMAIL.words):
        await vouch(books, same_email, link)
    with pytest.raises(NotAttributableError, match="younger than the account"):
        await vouch(books, referrer, link)
    assert await books.rows("SELECT * FROM referral") == []


async def test_rule_10_an_e_mail_known_before_or_an_account_older_than_the_link_is_refused(
    books: Books, clock: Clock
) -> None:
    _, link = await old_link(books, clock, 10)
    known = await friend_of(books, age=50 * DAY)
    again = Member(f"{known.account_id}-2", known.email, "cus_again", "sub_again", await clock.now())
    await books.put(again)

    with pytest.raises(NotAttributableError, match=Refusal.KNOWN_EMAIL.words):
        await vouch(books, again, link)
    with pytest.raises(NotAttributableError, match="younger than the account"):
        await vouch(books, known, link)
    with pytest.raises(UnknownAccountError):
        await vouch(books, await books.someone(), link)


async def test_rule_23_neither_an_erased_friend_nor_an_erased_referrer_is_attributed(
    books: Books, clock: Clock
) -> None:
    referrer, link = await old_link(books, clock, 30)
    gone = await friend_of(books, age=DAY)
    await books.erase(gone)
    with pytest.raises(NotAttributableError, match="Account erased"):
        await vouch(books, gone, link)
    await books.erase(referrer)
    async with books.database.transaction() as transaction:
        with pytest.raises(NotAttributableError, match="erased"):
            await attributions.link_of(transaction, code=link.code)


async def test_rule_10_two_operators_at_once_attribute_once(books: Books, clock: Clock) -> None:
    (_, first), (_, second) = await old_link(books, clock, 30), await old_link(books, clock, 30)
    friend = await friend_of(books, age=DAY)

    made = await asyncio.gather(*(vouch(books, friend, link) for link in (first, second)), return_exceptions=True)

    [refused] = [one for one in made if isinstance(one, NotAttributableError)]
    [reserved] = [one for one in made if isinstance(one, Reservation)]
    assert reserved.referral_id in str(refused)


def test_what_an_operator_vouched_for_is_kept(owner: psycopg.Connection) -> None:
    owner.execute("INSERT INTO account (account_id, created_at) VALUES ('rita', now()), ('fred', now())")
    owner.execute("INSERT INTO referral_link VALUES ('code234567', 'rita', now())")
    owner.execute(
        "INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until,"
        " lapses_at, stage) VALUES ('one', 'code234567', 'x', 'rita', 'fred', now(), now() + '1 d', now() + '2 d',"
        " 'clicked')"
    )
    owner.execute("INSERT INTO attribution VALUES ('one', 'ann', 'why', now())")
    for change in ("UPDATE attribution SET note = 'other'", "DELETE FROM attribution", "TRUNCATE attribution"):
        with pytest.raises(psycopg.errors.RestrictViolation):
            owner.execute(change)
