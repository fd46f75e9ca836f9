"""Doubtful referrals as an operator sees them and decides about them in Temporal (rules 19, 20, 22 and 23)."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowUpdateFailedError
from temporalio.service import RPCError

from program.doubts import Action, Doubt
from program.eligibility import VOIDED_WORDS, Refusal
from program.referral import Role, Stage
from tests.scenarios import SECOND, signed_up, slack
from tests.stripe_events import Event, dispute, invoice_paid, subscription
from tests.support import MONTH, AtStep, Member, World, until
from workflows.messages import REVIEW, REVIEW_REASONS, VOID, Outcome, Review, ReviewStart, Void, review_id, workflow_id


async def held(world: World) -> tuple[str, Member, Member]:
    """A referral that is held: the friend got a part of the payment back before anybody was credited."""
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    payment = await world.pay(friend)
    await world.refund(payment, amount=100)
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.IN_REVIEW)
    return click.referral_id, referrer, friend


async def credited(world: World) -> tuple[str, Member, Member, list[Event]]:
    """A credited referral, with what the friend paid."""
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    payment = await world.pay(friend)
    await world.reaches(click.referral_id, Stage.CREDITED)
    return click.referral_id, referrer, friend, payment


async def refusal_of(world: World, run_id: str, name: str, asked: Review | Void) -> str:
    """Why an update is refused."""
    handle = world.environment.client.get_workflow_handle(run_id)
    with pytest.raises(WorkflowUpdateFailedError) as failure:
        await handle.execute_update(name, asked, result_type=Outcome)
    return str(failure.value.cause)


async def test_rule_19_held_for_months_and_credited_as_of_the_approval(world: World) -> None:
    referral_id, referrer, friend = await held(world)
    state = await world.state(referral_id)
    assert state.reason == Doubt.REFUNDED_IN_PART.words
    assert state.review_reasons == ["refunded-in-part"]
    await world.pass_time(timedelta(days=100))
    assert (await world.state(referral_id)).stage is Stage.IN_REVIEW
    assert await world.lots(friend) == []
    before = await world.clock.now()

    outcome = await world.review(workflow_id(referral_id), "approve")

    assert (outcome.stage, outcome.minutes_voided) == (Stage.CREDITED, {})
    [one], [other] = await world.lots(referrer), await world.lots(friend)
    assert one.credited_at == other.credited_at >= before
    end = await world.outcome(referral_id)
    assert (end.stage, end.review_reasons, end.needs_attention) == (Stage.SETTLED, [], None)
    assert [(each.action, each.by, each.note) for each in end.reviews] == [(Action.APPROVE, "ann", "looked at it")]
    assert await world.story(referral_id) == [Stage.SIGNED_UP, Stage.IN_REVIEW, Stage.CREDITED, Stage.SETTLED]


async def test_rules_19_and_22_rejected_it_ends_in_words(world: World) -> None:
    referral_id, _, friend = await held(world)
    outcome = await world.review(workflow_id(referral_id), "reject")
    assert outcome.stage is Stage.REFUSED
    assert str(outcome.reason).startswith(Refusal.DECLINED.words)
    assert (await world.outcome(referral_id)).reason == outcome.reason
    assert await world.lots(friend) == []


async def test_rules_20_and_22_voided_before_the_credit_it_ends_in_words(world: World) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    outcome = await world.void(workflow_id(click.referral_id))
    assert (outcome.stage, outcome.reason) == (Stage.VOIDED, VOIDED_WORDS)
    assert (await world.outcome(click.referral_id)).stage is Stage.VOIDED
    await world.pay(friend)
    assert await world.lots(friend) == []


async def test_rule_20_a_refund_after_the_credit_is_shown_and_void_takes_the_unused_minutes(world: World) -> None:
    referral_id, referrer, friend, payment = await credited(world)
    await world.refund(payment, amount=2900)
    state = await until(lambda: world.state(referral_id), lambda state: bool(state.review_reasons))
    assert (state.stage, state.review_reasons) == (Stage.CREDITED, ["refunded"])
    assert state.needs_attention
    assert {lot.state for lot in await world.lots(friend)} == {"active"}

    outcome = await world.void(workflow_id(referral_id))

    assert outcome.minutes_voided == {Role.REFERRER: 90, Role.REFEREE: 90}
    # It is over at once, not at the end of a cycle.
    end = await world.handle(referral_id).result()
    assert (end.stage, end.review_reasons, end.needs_attention) == (Stage.CREDITED, [], None)
    assert {role: bonus.voided_minutes for role, bonus in end.bonuses.items()} == {Role.REFERRER: 90, Role.REFEREE: 90}
    assert {lot.state for lot in [*await world.lots(referrer), *await world.lots(friend)]} == {"void"}


async def test_rule_20_approved_after_a_refund_the_bonus_stands(world: World) -> None:
    referral_id, _, friend, payment = await credited(world)
    await world.refund(payment, amount=100)
    await until(lambda: world.state(referral_id), lambda state: bool(state.review_reasons))
    await world.review(workflow_id(referral_id), "approve")
    state = await world.state(referral_id)
    assert (state.stage, state.review_reasons, state.needs_attention) == (Stage.CREDITED, [], None)
    assert {lot.state for lot in await world.lots(friend)} == {"active"}
    assert (await world.outcome(referral_id)).stage is Stage.SETTLED


async def test_rule_20_a_refund_after_the_settlement_is_decided_in_a_run_of_its_own(world: World) -> None:
    referral_id, _, _, payment = await credited(world)
    await world.outcome(referral_id)
    await world.refund(payment, amount=2900)
    review = world.environment.client.get_workflow_handle(review_id(referral_id), result_type=Outcome)
    description = await review.describe()
    assert description.typed_search_attributes.get(REVIEW_REASONS) in (["refunded"], None)
    await world.pass_time(timedelta(days=100))
    assert (await review.describe()).close_time is None
    assert "void it" in await refusal_of(world, review.id, REVIEW, Review("reject", "ann", "why"))

    outcome = await world.void(review.id)

    assert (outcome.stage, outcome.minutes_voided) == (Stage.SETTLED, {})
    assert await review.result() == outcome
    shown = await world.referral(referral_id)
    assert (shown.stage, shown.review_reasons) == (Stage.SETTLED, [])
    assert "Voided" in str(shown.reason)


async def test_rule_20_what_nobody_decided_before_the_settlement_waits_on(live_world: World) -> None:
    world = live_world
    referral_id, referrer, friend = await signed_up(world)
    now = (await world.clock.now()).replace(microsecond=0)
    for member in (referrer, friend):
        period = (member.customer_id, member.subscription_id, now, now + 5 * SECOND + slack(world))
        payment = [subscription(*period), invoice_paid(*period)]
        await world.report(*payment)
    await world.reaches(referral_id, Stage.CREDITED)
    await world.refund(payment, amount=100)
    assert (await world.outcome(referral_id)).stage is Stage.SETTLED
    review = world.environment.client.get_workflow_handle(review_id(referral_id), result_type=Outcome)
    description = await until(
        review.describe, lambda seen: seen.typed_search_attributes.get(REVIEW_REASONS) is not None
    )
    assert description.typed_search_attributes.get(REVIEW_REASONS) == ["refunded-in-part"]
    outcome = await world.review(review.id, "approve")
    assert outcome.stage is Stage.SETTLED
    assert (await world.referral(referral_id)).review_reasons == []


async def test_rule_20_an_operator_can_void_a_settled_referral_by_its_id_alone(world: World) -> None:
    referral_id, *_ = await credited(world)
    await world.outcome(referral_id)
    await world.runs.review(ReviewStart(referral_id))
    outcome = await world.void(review_id(referral_id))
    assert outcome.stage is Stage.SETTLED


async def test_rules_19_and_20_what_cannot_be_decided_is_refused_in_words(world: World) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer, start=False)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    run = workflow_id(click.referral_id)
    assert "nothing is in doubt" in await refusal_of(world, run, REVIEW, Review("approve", "ann", "why"))
    assert "by is empty" in await refusal_of(world, run, VOID, Void("", "why"))
    assert "e-mail" in await refusal_of(world, run, VOID, Void("ann@example.com", "why"))
    await world.pay(friend)
    await world.reaches(click.referral_id, Stage.CREDITED)
    assert "nothing is in doubt" in await refusal_of(world, run, REVIEW, Review("reject", "ann", "why"))
    kinds = {event.event_type for event in await world.events(click.referral_id)}
    assert EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED not in kinds


async def test_rule_20_two_operators_at_once_void_once(live_world: World) -> None:
    world = live_world
    referral_id, _, friend, _ = await credited(world)
    outcomes = await asyncio.gather(
        *(world.void(workflow_id(referral_id), id=name) for name in ("one", "two")), return_exceptions=True
    )
    assert sum(isinstance(outcome, Outcome) for outcome in outcomes) == 1
    [failed] = [outcome for outcome in outcomes if not isinstance(outcome, Outcome)]
    # Refused in words, or by the server where the run has just closed.
    assert isinstance(failed, WorkflowUpdateFailedError | RPCError)
    assert {lot.state for lot in await world.lots(friend)} == {"void"}
    assert len(await world.story(referral_id)) == 3


async def test_rule_20_a_worker_that_dies_after_the_commit_has_decided_once(live_idle_world: World) -> None:
    world = live_idle_world

    async def die() -> None:
        raise ConnectionError("the worker is gone")

    dying = AtStep("decide", after=die)
    async with world.worker(dying):
        referral_id, _, friend = await held(world)
        outcome = await world.review(workflow_id(referral_id), "approve", id="the-one")
    assert dying.happened
    assert outcome.stage is Stage.CREDITED
    assert len(await world.lots(friend)) == 1
    async with world.database.transaction() as transaction:
        assert (await transaction.execute(text("SELECT count(*) FROM review"))).scalar_one() == 1


async def test_rule_20_a_dispute_while_it_is_held_is_shown_to_the_operator(world: World) -> None:
    referral_id, _, friend = await held(world)
    async with world.database.transaction() as transaction:
        intent = (await transaction.execute(text("SELECT payment_intent_id FROM invoice_payment"))).scalar_one()
    await world.report(dispute(intent, "needs_response", created=await world.clock.now()))
    state = await until(lambda: world.state(referral_id), lambda state: len(state.review_reasons) == 2)
    assert sorted(state.review_reasons) == ["disputed", "refunded-in-part"]
    await world.review(workflow_id(referral_id), "approve")
    assert len(await world.lots(friend)) == 1


async def test_rule_23_a_friend_erased_before_the_credit_ends_the_referral_at_once(world: World) -> None:
    referral_id, _, friend = await held(world)
    await world.erase(friend)
    end = await world.handle(referral_id).result()
    assert (end.stage, end.reason) == (Stage.REFUSED, Refusal.ACCOUNT_ERASED.words)


async def test_rule_23_an_erased_side_s_bonus_is_shown_as_void_and_the_other_goes_on(world: World) -> None:
    referral_id, referrer, friend, _ = await credited(world)
    await world.erase(friend)
    state = await until(
        lambda: world.state(referral_id), lambda state: state.bonuses[Role.REFEREE].voided_minutes is not None
    )
    assert state.bonuses[Role.REFEREE].voided_minutes == 90
    assert {lot.state for lot in await world.lots(referrer)} == {"active"}
    end = await world.outcome(referral_id)
    assert (end.stage, end.bonuses[Role.REFERRER].expired_minutes) == (Stage.SETTLED, 90)


async def test_rule_23_an_erased_referrer_s_open_referral_goes_on_and_credits_both(world: World) -> None:
    referrer = await world.subscriber(started=MONTH / 2)
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.erase(referrer)
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    await world.pay(friend)
    state = await world.outcome(click.referral_id)
    assert (state.stage, set(state.bonuses)) == (Stage.SETTLED, {Role.REFERRER, Role.REFEREE})
