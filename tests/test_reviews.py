"""What operators decide about doubtful referrals, on the ledger alone (rules 19, 20 and 22)."""

import asyncio
from datetime import timedelta

import psycopg
import pytest

from ledger import usage
from ledger.decisions import ImpossibleError
from program.doubts import LONGEST_NAME, LONGEST_NOTE, Action, Doubt, flaw_of, in_words
from program.eligibility import TAKEN_BACK_WORDS, VOIDED_WORDS, Refusal
from program.referral import Role, Stage
from tests.stripe_events import charge_refunded, dispute, paid_by
from tests.support import MONTH, Books, Member, refunded


async def spend(books: Books, member: Member, minutes: int) -> int:
    async with books.database.transaction() as transaction:
        return (await usage.spend(transaction, member.account_id, f"use-{minutes}", minutes)).from_bonus


async def journal(books: Books, referral_id: str) -> list[tuple[str, int]]:
    rows = await books.rows(
        "SELECT kind, delta FROM entry JOIN grant_lot USING (grant_id) WHERE referral_id = :id ORDER BY entry_id",
        id=referral_id,
    )
    return [(kind, delta) for kind, delta in rows]


async def test_rule_19_a_doubtful_payment_credits_nobody_until_an_operator_approves(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.held(referrer, friend)
    held = await books.referral(referral_id)
    assert (held.stage, held.reason) == (Stage.IN_REVIEW, Doubt.REFUNDED_IN_PART.words)
    assert held.needs_attention
    assert held.review_reasons == ["refunded-in-part"]
    assert await books.lots(referrer) == await books.lots(friend) == []
    # However often it is looked at, and however much time goes by.
    books.clock.advance(timedelta(days=20))
    assert (await books.credit(referral_id)).stage is Stage.IN_REVIEW
    before = await books.clock.now()

    made = await books.decide(referral_id, Action.APPROVE)

    assert (made.result.stage, made.result.minutes) == (Stage.CREDITED, 90)
    [one], [other] = await books.lots(referrer), await books.lots(friend)
    assert one.minutes == other.minutes == 90
    assert one.credited_at == other.credited_at >= before
    shown = await books.referral(referral_id)
    assert (shown.stage, shown.reason, shown.needs_attention, shown.review_reasons) == (Stage.CREDITED, None, None, [])
    assert [step.stage for step in await books.story(referral_id)] == ["signed_up", "in_review", "credited"]


async def test_rule_19_rejected_it_is_refused_in_words_and_no_longer_counted(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.held(referrer, friend)
    assert (await books.summary(referrer)).invited == 1

    made = await books.decide(referral_id, Action.REJECT)

    assert made.result.stage is Stage.REFUSED
    shown = await books.referral(referral_id)
    assert shown.reason == f"{Refusal.DECLINED.words} {Doubt.REFUNDED_IN_PART.words}"
    assert (shown.needs_attention, shown.review_reasons) == (None, [])
    assert (await books.summary(referrer)).invited == 0
    assert (await books.credit(referral_id)).stage is Stage.REFUSED
    assert await books.lots(friend) == []


@pytest.mark.parametrize("held", [False, True])
async def test_rule_20_voided_before_the_credit_it_ends_and_nobody_is_credited(books: Books, held: bool) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await (books.held if held else books.sign_up)(referrer, friend)

    made = await books.decide(referral_id, Action.VOID)

    assert (made.result.stage, made.voided_minutes) == (Stage.VOIDED, {})
    shown = await books.referral(referral_id)
    assert (shown.stage, shown.reason, shown.needs_attention) == (Stage.VOIDED, VOIDED_WORDS, None)
    await books.put(friend, linked=True)
    await books.pay(friend)
    assert (await books.credit(referral_id)).stage is Stage.VOIDED
    assert await books.lots(referrer) == await books.lots(friend) == []


async def test_rules_12_and_20_voided_after_the_credit_the_unused_minutes_go_and_the_used_stay(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.credited(referrer, friend)
    assert await spend(books, friend, 70) == 70

    made = await books.decide(referral_id, Action.VOID)

    assert made.voided_minutes == {Role.REFERRER: 90, Role.REFEREE: 20}
    shown = await books.referral(referral_id)
    assert (shown.stage, shown.reason) == (Stage.CREDITED, TAKEN_BACK_WORDS)
    for member, earned in ((referrer, 0), (friend, 70)):
        [lot] = await books.lots(member)
        assert (lot.state, lot.remaining) == ("void", 0)
        seen = await books.summary(member)
        assert (seen.bonus_minutes_earned, seen.bonus_minutes_available, seen.next_expiry) == (earned, 0, None)
    assert sorted(await journal(books, referral_id)) == [
        ("credit", 90),
        ("credit", 90),
        ("usage", -70),
        ("void", -90),
        ("void", -20),
    ]
    assert await spend(books, friend, 5) == 0
    # Its expiry finds nothing to do, and does not call it settled.
    books.clock.advance(timedelta(days=40))
    expiry = await books.expire(referral_id)
    assert (expiry.stage, expiry.voided_minutes) == (Stage.CREDITED, {Role.REFERRER: 90, Role.REFEREE: 20})


async def test_rule_20_once_settled_only_the_ledger_is_marked(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.credited(referrer, friend)
    books.clock.advance(timedelta(days=40))
    assert (await books.expire(referral_id)).stage is Stage.SETTLED
    written = await journal(books, referral_id)

    made = await books.decide(referral_id, Action.VOID)

    assert (made.result.stage, made.voided_minutes) == (Stage.SETTLED, {})
    shown = await books.referral(referral_id)
    assert (shown.stage, shown.reason) == (Stage.SETTLED, TAKEN_BACK_WORDS)
    assert await journal(books, referral_id) == written
    with pytest.raises(ImpossibleError, match="void"):
        await books.decide(referral_id, Action.VOID, "another")


async def test_rules_7_and_20_what_is_due_has_expired_and_is_not_voided(books: Books) -> None:
    referrer, friend = await books.subscriber(started=MONTH / 2), await books.someone()
    referral_id = await books.credited(referrer, friend)
    # The referrer's cycle is over, and nobody swept it yet.
    books.clock.advance(timedelta(days=16))

    made = await books.decide(referral_id, Action.VOID)

    assert made.voided_minutes == {Role.REFEREE: 90}
    assert {lot.state for lot in await books.lots(referrer)} == {"expired"}
    assert (await books.summary(referrer)).bonus_minutes_earned == 90


@pytest.mark.parametrize(
    ("amount", "disputed", "reasons"),
    [
        (100, False, [Doubt.REFUNDED_IN_PART]),
        (2900, False, [Doubt.REFUNDED]),
        (0, True, [Doubt.DISPUTED]),
        (100, True, [Doubt.REFUNDED_IN_PART, Doubt.DISPUTED]),
    ],
    ids=["in part", "whole", "disputed", "both"],
)
async def test_rule_20_a_reversal_after_the_credit_marks_and_takes_nothing(
    books: Books, amount: int, disputed: bool, reasons: list[Doubt]
) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    payment = await books.pay(friend)
    await books.credit(referral_id)
    invoice, now = payment[1]["data"]["object"]["id"], await books.clock.now()
    events = [paid_by(invoice, "pi_1", now)]
    events += [charge_refunded("pi_1", amount, customer=friend.customer_id, charge_id="ch_1")] if amount else []
    events += [dispute("pi_1", "needs_response", created=now)] if disputed else []
    await books.report(*events)
    shown = await books.referral(referral_id)
    assert (shown.stage, sorted(shown.review_reasons)) == (Stage.CREDITED, sorted(reasons))
    assert shown.needs_attention
    assert {lot.state for lot in await books.lots(friend)} == {"active"}

    await books.decide(referral_id, Action.APPROVE)

    shown = await books.referral(referral_id)
    assert (shown.stage, shown.review_reasons, shown.needs_attention) == (Stage.CREDITED, [], None)
    # Told again, what was approved of is not brought up again.
    news = await books.report(*(event | {"id": f"{event['id']}_again"} for event in events))
    assert not any(each.reversed for each in news)
    assert (await books.referral(referral_id)).review_reasons == []


async def test_rule_20_a_mark_that_nobody_decided_on_outlives_the_settlement(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    payment = await books.pay(friend)
    await books.credit(referral_id)
    await books.report(*refunded(payment, 100, await books.clock.now()))
    books.clock.advance(timedelta(days=40))
    assert (await books.expire(referral_id)).stage is Stage.SETTLED
    shown = await books.referral(referral_id)
    assert (shown.review_reasons, bool(shown.needs_attention)) == (["refunded-in-part"], True)


async def test_rule_14_what_is_given_back_whole_while_it_is_held_is_not_credited_when_approved(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    payment = await books.pay(friend)
    await books.report(*refunded(payment, 100, await books.clock.now()))
    await books.credit(referral_id)
    await books.report(refunded(payment, 2900, await books.clock.now())[1])
    assert sorted((await books.referral(referral_id)).review_reasons) == ["refunded", "refunded-in-part"]

    made = await books.decide(referral_id, Action.APPROVE)

    assert made.result.stage is Stage.SIGNED_UP
    assert await books.lots(friend) == []
    # The first real payment after it counts, and is no matter of that approval.
    books.clock.advance(timedelta(days=1))
    await books.pay(friend, plan="power")
    assert (await books.credit(referral_id)).plan == "power"


async def test_rule_19_a_doubt_that_the_operator_did_not_know_of_holds_it_again(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    payment = await books.pay(friend)
    now = await books.clock.now()
    await books.report(*refunded(payment, 100, now))
    await books.credit(referral_id)
    # What the webhook could not tell yet: the way from the dispute to the invoice is the same, but it is not marked.
    await books.rows(
        "INSERT INTO dispute (dispute_id, charge_id, payment_intent_id, status, seen_at) "
        "VALUES ('dp_1', 'ch_x', :intent, 'needs_response', now()) RETURNING 1",
        intent=f"pi_{payment[1]['data']['object']['id']}",
    )

    made = await books.decide(referral_id, Action.APPROVE)

    assert made.result.stage is Stage.IN_REVIEW
    assert sorted(made.result.review_reasons) == ["disputed", "refunded-in-part"]
    assert await books.lots(friend) == []
    assert (await books.decide(referral_id, Action.APPROVE, "two")).result.stage is Stage.CREDITED


async def test_rule_18_whoever_turns_out_to_be_the_referrer_is_refused_although_approved(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.held(referrer, friend)
    friend.email = referrer.email
    await books.put(friend)

    made = await books.decide(referral_id, Action.APPROVE)

    assert (made.result.stage, made.result.reason) == (Stage.REFUSED, Refusal.SAME_EMAIL.words)


async def test_rules_19_and_20_who_decided_what_and_why_is_on_record_once(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.held(referrer, friend)
    first = await books.decide(referral_id, Action.APPROVE, "first")
    assert await books.decide(referral_id, Action.APPROVE, "first") == first
    await books.decide(referral_id, Action.VOID, "second")
    again = await books.decide(referral_id, Action.VOID, "second")
    assert again.voided_minutes == {Role.REFERRER: 90, Role.REFEREE: 90}
    found = await books.rows("SELECT decision_id, action, decided_by, note, reasons FROM review ORDER BY at")
    assert found == [
        ("first", "approve", "ann", "looked at it", ["refunded-in-part"]),
        ("second", "void", "ann", "looked at it", []),
    ]
    assert len(await books.lots(friend)) == 1


@pytest.mark.parametrize("statement", ["UPDATE review SET note = 'x'", "DELETE FROM review", "TRUNCATE review"])
async def test_rule_20_what_was_decided_cannot_be_changed(
    books: Books, owner: psycopg.Connection, statement: str
) -> None:
    await books.decide(await books.held(await books.subscriber(), await books.someone()), Action.REJECT)
    with pytest.raises(psycopg.errors.RestrictViolation):
        owner.execute(statement)


@pytest.mark.parametrize(
    ("action", "words"),
    [(Action.APPROVE, "nothing is in doubt"), (Action.REJECT, "nothing is held")],
)
async def test_rule_19_what_is_not_held_cannot_be_decided(books: Books, action: Action, words: str) -> None:
    referral_id = await books.sign_up(await books.subscriber(), await books.someone())
    with pytest.raises(ImpossibleError, match=words):
        await books.decide(referral_id, action)
    assert (await books.referral(referral_id)).stage is Stage.SIGNED_UP
    assert await books.rows("SELECT 1 FROM review") == []


async def test_rule_20_what_is_credited_is_not_rejected_and_what_is_over_not_voided(books: Books) -> None:
    referrer, friend, other = await books.subscriber(), await books.someone(), await books.someone()
    credited = await books.credited(referrer, friend)
    with pytest.raises(ImpossibleError, match="credited already"):
        await books.decide(credited, Action.REJECT)
    rejected = await books.held(referrer, other)
    await books.decide(rejected, Action.REJECT)
    with pytest.raises(ImpossibleError, match="refused"):
        await books.decide(rejected, Action.VOID, "two")


async def test_rule_20_two_operators_at_once_and_the_friend_spending_void_once_and_never_below_zero(
    books: Books,
) -> None:
    referrer = await books.subscriber()
    for _ in range(5):
        friend = await books.someone()
        referral_id = await books.credited(referrer, friend)
        outcomes = await asyncio.gather(
            books.decide(referral_id, Action.VOID, "one"),
            books.decide(referral_id, Action.VOID, "two"),
            spend(books, friend, 50),
            spend(books, friend, 60),
            books.expire(referral_id),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, ImpossibleError) for outcome in outcomes) == 1
        assert not [each for each in outcomes if isinstance(each, Exception) and not isinstance(each, ImpossibleError)]
        used = [outcome for outcome in outcomes if isinstance(outcome, int)]
        [lot] = await books.lots(friend)
        assert (lot.state, lot.remaining) == ("void", 0)
        assert (await books.summary(friend)).bonus_minutes_earned == sum(used) <= 90


async def test_rule_6_an_approval_and_a_rejection_at_once_have_one_winner(books: Books) -> None:
    referrer = await books.subscriber()
    for _ in range(5):
        friend = await books.someone()
        referral_id = await books.held(referrer, friend)
        outcomes = await asyncio.gather(
            books.decide(referral_id, Action.APPROVE, "one"),
            books.decide(referral_id, Action.REJECT, "two"),
            books.credit(referral_id),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, ImpossibleError) for outcome in outcomes) == 1
        stage = (await books.referral(referral_id)).stage
        assert len(await books.lots(friend)) == (1 if stage is Stage.CREDITED else 0)


def test_rule_22_every_doubt_has_words_of_its_own() -> None:
    assert len({doubt.words for doubt in Doubt}) == len(Doubt)
    assert in_words([Doubt.SAME_CARD, Doubt.DISPUTED, Doubt.SAME_CARD]) == (
        f"{Doubt.DISPUTED.words} {Doubt.SAME_CARD.words}"
    )


@pytest.mark.parametrize(
    ("by", "note", "words"),
    [
        ("", "why", "by is empty"),
        (" ", "why", "by is empty"),
        ("ann", "", "note is empty"),
        ("ann@example.com", "why", "e-mail"),
        ("ann", "wrote to fred@example.com", "e-mail"),
        ("ann", "both came from 203.0.113.9.", "IP address"),
        ("ann", "the same address (IP:203.0.113.9)", "IP address"),
        ("ann", "both came from 2001:db8::7f: the same house", "IP address"),
        ("a" * (LONGEST_NAME + 1), "why", "more than 100"),
        ("ann", "y" * (LONGEST_NOTE + 1), "more than 1000"),
        ("ann\0", "why", "control"),
    ],
)
def test_rule_24_a_decision_says_who_and_why_and_names_no_address(by: str, note: str, words: str) -> None:
    assert words in (flaw_of(by, note) or "")
    assert flaw_of("ann", "the friend called at 10:30,\nand explained it: 2.50 of 29.00 came back, see acct-7.") is None
