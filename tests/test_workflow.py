"""Every stage of a referral, on the time-skipping server with the real ledger."""

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import psycopg
import pytest
from temporalio.client import WorkflowFailureError
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import CancelledError

from ledger import queries
from program.eligibility import LAPSED_WORDS, Refusal
from program.payments import Attention
from program.referral import Role, Stage
from tests.stripe_events import invoice_paid, subscription
from tests.support import AtStep, Member, World, run_start, until
from workflows import messages, policies
from workflows.client import ReferralOverError
from workflows.messages import CycleMoved, PaymentReported, SignupReported

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
MONTH = timedelta(days=30)


async def credited(world: World, referrer: Member, *, plan: str = "pro", length: timedelta = MONTH) -> str:
    """A referral whose friend has just paid for a period of that length."""
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    await world.pay(friend, plan=plan, length=length)
    await world.reaches(click.referral_id, Stage.CREDITED)
    return click.referral_id


async def summary(world: World, member: Member) -> queries.Summary:
    await world.clock.now()
    async with world.database.transaction() as transaction:
        return await queries.summary(transaction, member.account_id)


@pytest.mark.parametrize(("plan", "minutes"), [("starter", 22), ("pro", 90), ("power", 300)])
async def test_rule_3_both_get_a_quarter_of_the_plan_and_rule_7_it_expires_with_each_ones_own_cycle(
    world: World, plan: str, minutes: int
) -> None:
    referrer = await world.subscriber(started=20 * DAY, length=MONTH)
    click = await world.click(referrer)
    friend = await world.member("friend")
    reservation = await world.sign_up(click, referrer, friend)
    assert reservation.referral_id == click.referral_id
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    assert (await world.state(click.referral_id)).referee == friend.account_id
    await world.pay(friend, plan=plan)
    await world.reaches(click.referral_id, Stage.CREDITED)
    referral = await world.referral(click.referral_id)
    assert (referral.plan, referral.bonus_minutes) == (plan, minutes)
    [mine], [theirs] = await world.lots(referrer), await world.lots(friend)
    assert mine.credited_at == theirs.credited_at == referral.credited_at
    assert (mine.minutes, mine.remaining, theirs.minutes, theirs.remaining) == (minutes,) * 4
    assert timedelta(days=9) < mine.expires_at - mine.credited_at < timedelta(days=11)
    assert timedelta(days=29) < theirs.expires_at - theirs.credited_at < timedelta(days=31)
    state = await world.state(click.referral_id)
    assert {role: bonus.expires_at for role, bonus in state.bonuses.items()} == referral.expires_at
    state = await world.outcome(click.referral_id)
    assert state.stage is Stage.SETTLED
    assert {role: (bonus.minutes, bonus.expired_minutes) for role, bonus in state.bonuses.items()} == {
        Role.REFERRER: (minutes, minutes),
        Role.REFEREE: (minutes, minutes),
    }
    assert {role: bonus.expires_at for role, bonus in state.bonuses.items()} == referral.expires_at
    assert await world.story(click.referral_id) == [Stage.SIGNED_UP, Stage.CREDITED, Stage.SETTLED]
    [mine], [theirs] = await world.lots(referrer), await world.lots(friend)
    assert (mine.state, mine.remaining, mine.expired) == ("expired", 0, minutes)
    assert (theirs.state, theirs.remaining, theirs.expired) == ("expired", 0, minutes)
    assert (await world.clock.now()) >= max(mine.expires_at, theirs.expires_at)
    numbers = await summary(world, referrer)
    assert (numbers.invited, numbers.subscribed, numbers.bonus_minutes_earned) == (1, 1, minutes)
    assert numbers.bonus_minutes_available == 0


async def test_rule_15_the_accounts_creation_decides_also_where_it_is_reported_within_the_grace(world: World) -> None:
    referrer = await world.subscriber()
    ages = {
        "day 89": (89 * DAY, Stage.SIGNED_UP),
        "a second before day 90": (90 * DAY - SECOND, Stage.SIGNED_UP),
        "day 90": (90 * DAY, Stage.LAPSED),
        "day 91": (91 * DAY, Stage.LAPSED),
    }
    clicks = {name: await world.click(referrer) for name in ages}
    await world.pass_time(96 * DAY)
    seen = {}
    for name, (age, _) in ages.items():
        friend = await world.member("friend", created_at=clicks[name].window.clicked_at + age)
        await world.sign_up(clicks[name], referrer, friend)
        seen[name] = await world.reaches(clicks[name].referral_id, Stage.SIGNED_UP, Stage.LAPSED)
    assert seen == {name: stage for name, (_, stage) in ages.items()}
    late = clicks["day 90"].referral_id
    state = await world.outcome(late)
    assert (state.reason, state.bonuses) == (LAPSED_WORDS, {})
    assert (await world.referral(late)).reason == LAPSED_WORDS
    assert (await summary(world, referrer)).invited == 2


@pytest.mark.parametrize("by_the_clock_of", ["server", "worker"])
async def test_rule_15_without_a_signup_it_lapses_after_97_days_and_not_before(
    world: World, by_the_clock_of: str
) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    assert click.window.lapses_at == click.window.clicked_at + 97 * DAY
    handle = world.handle(click.referral_id)
    if by_the_clock_of == "worker":
        # In this server any signal ends the start delay; the run then waits for the rest by a timer of its own.
        await world.pass_time(10 * DAY)
        await handle.signal(messages.PAYMENT, PaymentReported("evt_forged"))
        await until(lambda: world.state(click.referral_id), lambda state: state.payments_reported == 1)
    await world.pass_time(click.window.lapses_at - await world.clock.now() - timedelta(minutes=1))
    if by_the_clock_of == "worker":
        assert (await world.state(click.referral_id)).stage is Stage.CLICKED
    assert (await handle.describe()).close_time is None
    await world.pass_time(timedelta(minutes=1))
    state = await world.outcome(click.referral_id)
    assert (state.stage, state.reason, state.referee) == (Stage.LAPSED, LAPSED_WORDS, None)
    closed = (await handle.describe()).close_time
    assert closed is not None
    assert closed >= click.window.lapses_at
    known = await world.runs.click(click.referral_id)
    assert known is not None
    assert (known.stage, known.clicked_at) == (Stage.LAPSED, click.window.clicked_at)


async def test_rule_15_after_a_signup_there_is_no_deadline(world: World) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    await world.pass_time(400 * DAY)
    assert (await world.state(click.referral_id)).stage is Stage.SIGNED_UP
    await world.pay(friend)
    assert await world.reaches(click.referral_id, Stage.CREDITED)


async def test_a_signup_whose_click_never_reached_temporal_begins_the_run(world: World) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer, start=False)
    assert await world.runs.click(click.referral_id) is None
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    described = (await world.handle(click.referral_id).describe()).typed_search_attributes
    assert described[messages.REFERRER_ACCOUNT] == referrer.account_id
    await world.pay(friend)
    assert (await world.outcome(click.referral_id)).stage is Stage.SETTLED


async def test_rule_16_a_second_person_with_the_same_token_is_a_referral_of_its_own(world: World) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    first, second = await world.member("friend"), await world.member("friend")
    one = await world.sign_up(click, referrer, first)
    two = await world.sign_up(click, referrer, second)
    again = await world.sign_up(click, referrer, second)
    assert one.referral_id == click.referral_id
    assert two.referral_id == again.referral_id != one.referral_id
    for referral_id, friend in ((one.referral_id, first), (two.referral_id, second)):
        await world.reaches(referral_id, Stage.SIGNED_UP)
        assert (await world.state(referral_id)).referee == friend.account_id
        await world.pay(friend)
        await world.reaches(referral_id, Stage.CREDITED)
    assert sorted(lot.referral_id for lot in await world.lots(referrer)) == sorted([one.referral_id, two.referral_id])
    assert [lot.referral_id for lot in await world.lots(second)] == [two.referral_id]


async def _same_account(_: World, referrer: Member) -> Member:
    return referrer


async def _same_email(world: World, referrer: Member) -> Member:
    friend = await world.member("friend")
    friend.email = referrer.email.upper()
    return friend


async def _same_customer(world: World, referrer: Member) -> Member:
    return await world.member("friend", customer=referrer.customer_id)


async def _existing_account(world: World, _: Member) -> Member:
    return await world.member("friend", created_at=await world.clock.now() - timedelta(minutes=3))


async def _already_referred(world: World, _: Member) -> Member:
    # By somebody else, who is credited when the friend pays.
    friend, first = await world.member("friend"), await world.subscriber("first")
    earlier = await world.click(first)
    await world.sign_up(earlier, first, friend)
    await world.reaches(earlier.referral_id, Stage.SIGNED_UP)
    return friend


async def _known_email(world: World, _: Member) -> Member:
    other, friend = await world.member("friend"), await world.member("friend")
    friend.email = other.email
    return friend


async def _known_customer(world: World, _: Member) -> Member:
    other = await world.member("friend")
    return await world.member("friend", customer=other.customer_id)


async def _paid_before(world: World, _: Member) -> Member:
    friend = await world.member("friend")
    at = await world.clock.now() - DAY
    await world.report(invoice_paid(friend.customer_id, friend.subscription_id, at, at + MONTH, paid_at=at))
    return friend


@pytest.mark.parametrize(
    ("refusal", "make"),
    [
        (Refusal.SAME_ACCOUNT, _same_account),
        (Refusal.SAME_EMAIL, _same_email),
        (Refusal.SAME_CUSTOMER, _same_customer),
        (Refusal.EXISTING_ACCOUNT, _existing_account),
        (Refusal.ALREADY_REFERRED, _already_referred),
        (Refusal.KNOWN_EMAIL, _known_email),
        (Refusal.KNOWN_CUSTOMER, _known_customer),
        (Refusal.PAID_BEFORE, _paid_before),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_rules_10_18_and_22_a_signup_that_does_not_count_is_refused_in_words(
    world: World, refusal: Refusal, make: Callable[[World, Member], Awaitable[Member]]
) -> None:
    referrer = await world.subscriber()
    friend = await make(world, referrer)
    click = await world.click(referrer)
    await world.sign_up(click, referrer, friend)
    # Time is not let run ahead: it might run on to where the server gives up another referral that waits.
    state = await world.handle(click.referral_id).result()
    assert (state.stage, state.reason) == (Stage.REFUSED, refusal.words)
    assert state.referee == friend.account_id
    assert state.bonuses == {}
    if refusal is not Refusal.SAME_ACCOUNT:
        await world.pay(friend)
    assert await world.story(click.referral_id) == [Stage.REFUSED]
    assert await world.lots(referrer) == []


async def test_rule_18_who_turns_out_to_be_the_referrer_is_refused_before_the_credit(world: World) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    same = Member(friend.account_id, referrer.email, friend.customer_id, friend.subscription_id, friend.created_at)
    await world.put(same)
    await world.pay(friend)
    state = await world.outcome(click.referral_id)
    assert (state.stage, state.reason) == (Stage.REFUSED, Refusal.SAME_EMAIL.words)
    assert await world.lots(referrer) == await world.lots(friend) == []


async def test_rule_8_a_referrer_who_has_lapsed_has_31_days(world: World) -> None:
    referrer = await world.subscriber(started=MONTH - DAY)
    click = await world.click(referrer)
    await world.pass_time(10 * DAY)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    await world.pay(friend, length=20 * DAY)
    await world.reaches(click.referral_id, Stage.CREDITED)
    [lot] = await world.lots(referrer)
    assert lot.expires_at == lot.credited_at + 31 * DAY
    state = await world.outcome(click.referral_id)
    assert state.bonuses[Role.REFERRER].expires_at == lot.expires_at


@pytest.mark.parametrize(
    ("new_end", "expected"),
    [
        (25 * DAY, 25 * DAY),
        (45 * DAY, None),
    ],
    ids=["to the new end", "to 31 days at most"],
)
async def test_rule_9_a_cycle_that_moves_takes_the_bonus_along(
    world: World, new_end: timedelta, expected: timedelta | None
) -> None:
    referrer = await world.subscriber(started=10 * DAY, length=20 * DAY)
    referral_id = await credited(world, referrer)
    [lot] = await world.lots(referrer)
    start = lot.expires_at - 20 * DAY
    moved = await world.clock.now() + new_end
    await world.report(
        subscription(
            referrer.customer_id, referrer.subscription_id, start, moved, type_="customer.subscription.updated"
        )
    )
    wanted = moved.replace(microsecond=0) if expected else lot.credited_at + 31 * DAY
    state = await until(
        lambda: world.state(referral_id), lambda state: state.bonuses[Role.REFERRER].expires_at == wanted
    )
    assert (await world.referral(referral_id)).expires_at[Role.REFERRER] == wanted
    attributes = (await world.handle(referral_id).describe()).typed_search_attributes
    assert attributes[messages.BONUS_EXPIRES_AT] == min(bonus.expires_at for bonus in state.bonuses.values())
    # Past the old end the minutes are there, past the new one they are not.
    await world.pass_time(lot.expires_at - await world.clock.now() + DAY)
    [lot] = await world.lots(referrer)
    assert (lot.state, lot.expires_at) == ("active", wanted)
    assert (await world.state(referral_id)).bonuses[Role.REFERRER].expired_minutes is None
    await world.pass_time(wanted - await world.clock.now())
    await until(lambda: world.state(referral_id), lambda state: state.bonuses[Role.REFERRER].expired_minutes == 90)
    assert (await world.outcome(referral_id)).stage is Stage.SETTLED


async def test_rule_9_a_cycle_that_ends_earlier_takes_nothing_away(world: World) -> None:
    referrer = await world.subscriber(started=10 * DAY, length=20 * DAY)
    referral_id = await credited(world, referrer)
    [lot] = await world.lots(referrer)
    start = lot.expires_at - 20 * DAY
    await world.report(
        subscription(
            referrer.customer_id,
            referrer.subscription_id,
            start,
            lot.expires_at - 5 * DAY,
            type_="customer.subscription.updated",
        )
    )
    state = await world.outcome(referral_id)
    assert state.bonuses[Role.REFERRER].expires_at == lot.expires_at


@pytest.mark.parametrize("renewed", ["before the credit", "after the credit"])
async def test_rules_7_and_9_a_renewal_around_the_credit(world: World, renewed: str) -> None:
    """A renewal begins at the end of the old cycle: before the credit it is the cycle, after it it moves nothing."""
    referrer = await world.subscriber(started=MONTH - timedelta(hours=2))
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    end = (await world.cycle(referrer)).end

    async def renew() -> None:
        await world.pass_time(max(end - await world.clock.now(), timedelta(0)) + SECOND)
        await world.report(
            subscription(
                referrer.customer_id,
                referrer.subscription_id,
                end,
                end + 29 * DAY,
                type_="customer.subscription.updated",
            ),
            invoice_paid(referrer.customer_id, referrer.subscription_id, end, end + 29 * DAY, paid_at=end),
        )

    if renewed == "before the credit":
        await renew()
    await world.pay(friend)
    await world.reaches(click.referral_id, Stage.CREDITED)
    if renewed == "after the credit":
        await renew()
    state = await world.outcome(click.referral_id)
    assert state.bonuses[Role.REFERRER].expires_at == (end + 29 * DAY if renewed == "before the credit" else end)


async def test_rule_11_who_cancels_keeps_the_bonus_and_who_comes_back_gets_no_second_one(world: World) -> None:
    referrer = await world.subscriber(started=DAY)
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    now = await world.clock.now()
    await world.pay(friend)
    await world.reaches(click.referral_id, Stage.CREDITED)
    before = (await world.lots(referrer), await world.lots(friend))
    await world.report(
        subscription(
            friend.customer_id,
            friend.subscription_id,
            now,
            now + MONTH,
            status="canceled",
            ended_at=now + SECOND,
            type_="customer.subscription.deleted",
        )
    )
    assert (await world.lots(referrer), await world.lots(friend)) == before
    friend.subscription_id += "_again"
    await world.pass_time(2 * DAY)
    await world.pay(friend, plan="power")
    state = await world.outcome(click.referral_id)
    assert state.plan == "pro"
    await world.pay(friend, plan="power")
    assert [lot.minutes for lot in await world.lots(friend)] == [90]
    assert [lot.minutes for lot in await world.lots(referrer)] == [90]
    assert (await summary(world, referrer)).subscribed == 1


@pytest.mark.parametrize("mended_by", ["looking again", "news"])
async def test_rule_14_an_unknown_price_waits_for_an_operator_and_then_goes_on_by_itself(
    world: World, owner: psycopg.Connection, mended_by: str
) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    now = await world.clock.now()
    await world.pay(friend, plan="mystery")
    state = await until(lambda: world.state(click.referral_id), lambda state: state.needs_attention is not None)
    assert state.stage is Stage.SIGNED_UP
    assert state.needs_attention is not None
    assert "price_mystery" in state.needs_attention
    assert (await world.referral(click.referral_id)).needs_attention == state.needs_attention
    attributes = (await world.handle(click.referral_id).describe()).typed_search_attributes
    assert attributes[messages.REVIEW_REASONS] == [Attention.UNKNOWN_PRICE]
    await world.pass_time(policies.LOOK_AGAIN * 5 / 2)
    assert (await world.state(click.referral_id)).stage is Stage.SIGNED_UP
    if mended_by == "news":
        await world.report(
            subscription(
                friend.customer_id,
                friend.subscription_id,
                now,
                now + MONTH,
                plan="mystery",
                lookup_key="pro",
                type_="customer.subscription.updated",
                created=await world.clock.now(),
            )
        )
    else:
        owner.execute("UPDATE price SET lookup_key = 'pro' WHERE price_id = 'price_mystery'")
        await world.pass_time(policies.LOOK_AGAIN)
    await world.reaches(click.referral_id, Stage.CREDITED)
    state = await world.state(click.referral_id)
    assert (state.plan, state.needs_attention) == ("pro", None)
    attributes = (await world.handle(click.referral_id).describe()).typed_search_attributes
    assert not attributes.get(messages.REVIEW_REASONS)
    assert (await world.referral(click.referral_id)).needs_attention is None
    assert [lot.minutes for lot in await world.lots(friend)] == [90]
    assert (await world.outcome(click.referral_id)).stage is Stage.SETTLED


async def test_rule_14_what_costs_nothing_brings_no_bonus_yet(world: World) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    now = await world.clock.now()
    await world.report(invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH, amount_paid=0))
    # A run that is told of it all the same looks, and waits on.
    await world.handle(click.referral_id).signal(messages.PAYMENT, PaymentReported("evt_of_a_trial"))
    state = await until(lambda: world.state(click.referral_id), lambda state: state.payments_looked_at == 1)
    assert (state.stage, state.needs_attention) == (Stage.SIGNED_UP, None)
    assert await world.lots(friend) == []
    await world.pay(friend)
    await world.reaches(click.referral_id, Stage.CREDITED)


@pytest.mark.parametrize("behind", [timedelta(seconds=90), timedelta(milliseconds=900)], ids=str)
async def test_rule_7_the_ledgers_clock_decides_when_a_bonus_is_due(world: World, behind: timedelta) -> None:
    """Where it is behind Temporal's, the run is told how long is left and sleeps on, a second at least."""
    referrer = await world.subscriber(started=MONTH - 5 * DAY)
    referral_id = await credited(world, referrer)
    before = (await world.referral(referral_id)).expires_at
    world.clock.database_behind = behind
    began = time.monotonic()
    state = await world.outcome(referral_id)
    took = timedelta(seconds=time.monotonic() - began)
    assert state.stage is Stage.SETTLED
    assert {role: bonus.expires_at for role, bonus in state.bonuses.items()} == before
    timers = [
        event.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta()
        for event in await world.events(referral_id)
        if event.HasField("timer_started_event_attributes")
    ]
    # By what a busy machine takes between a timer and the look at the ledger, the ledger's clock has caught up.
    assert len(timers) > 2 or took > 2 * behind, "the run never had to sleep on"
    assert min(timers) >= max(SECOND, behind - took)
    assert len(timers) < 8, "the run woke again and again"
    assert [lot.expired for lot in await world.lots(referrer)] == [90]


@pytest.mark.parametrize("step", ["attribute_signup", "credit_both", "expire_bonuses"])
async def test_a_step_that_fails_becomes_a_visible_activity_and_is_tried_until_it_succeeds(
    world: World, owner: psycopg.Connection, step: str
) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    referral_id = click.referral_id
    if step != "attribute_signup":
        await world.sign_up(click, referrer, friend)
        await world.reaches(referral_id, Stage.SIGNED_UP)
    if step == "expire_bonuses":
        await world.pay(friend, length=15 * DAY)
        await world.reaches(referral_id, Stage.CREDITED)
    # Every change of a referral's stage is written into its story.
    owner.execute("REVOKE INSERT ON referral_event FROM referrals_app")
    if step == "attribute_signup":
        await world.sign_up(click, referrer, friend)
    elif step == "credit_both":
        await world.pay(friend)
    else:
        await world.pass_time(15 * DAY)

    async def failing() -> list[tuple[str, str]]:
        pending = (await world.handle(referral_id).describe()).raw_description.pending_activities
        return [(one.activity_type.name, one.last_failure.message) for one in pending if one.attempt > 1]

    [(name, why)] = await until(failing, bool)
    assert name == step
    assert "InsufficientPrivilege" in why
    stage = {"attribute_signup": Stage.CLICKED, "credit_both": Stage.SIGNED_UP, "expire_bonuses": Stage.CREDITED}[step]
    assert (await world.referral(referral_id)).stage is stage
    assert (await world.state(referral_id)).stage is stage
    owner.execute("GRANT INSERT ON referral_event TO referrals_app")
    await world.reaches(referral_id, *set(Stage) - {stage})
    if step == "attribute_signup":
        await world.pay(friend)
    assert (await world.outcome(referral_id)).stage is Stage.SETTLED
    assert await world.story(referral_id) == [Stage.SIGNED_UP, Stage.CREDITED, Stage.SETTLED]
    assert [lot.expired for lot in await world.lots(referrer)] == [90]


async def test_a_step_whose_answer_got_lost_is_read_and_not_done_again(idle_world: World) -> None:
    world = idle_world

    async def lose_the_answer() -> None:
        raise ConnectionError("the answer got lost behind the commit")

    steps = [AtStep(step, after=lose_the_answer) for step in ("attribute_signup", "credit_both", "expire_bonuses")]
    async with world.worker(*steps):
        referrer = await world.subscriber()
        referral_id = await credited(world, referrer)
        state = await world.outcome(referral_id)
    assert [step.happened for step in steps] == [True] * 3
    assert {role: bonus.expired_minutes for role, bonus in state.bonuses.items()} == {
        Role.REFERRER: 90,
        Role.REFEREE: 90,
    }
    assert await world.story(referral_id) == [Stage.SIGNED_UP, Stage.CREDITED, Stage.SETTLED]
    assert (await summary(world, referrer)).bonus_minutes_earned == 90


@pytest.mark.parametrize("stage", [Stage.CREDITED, Stage.SETTLED])
async def test_a_run_that_begins_anew_catches_up_with_the_ledger(world: World, stage: Stage) -> None:
    """A reset, or an id that is free again once Temporal has forgotten the run."""
    referrer = await world.subscriber()
    referral_id = await credited(world, referrer)
    if stage is Stage.SETTLED:
        await world.outcome(referral_id)
    else:
        await world.handle(referral_id).terminate()
    referral = await world.referral(referral_id)
    await world.environment.client.start_workflow(
        messages.WORKFLOW,
        messages.ReferralStart(referral_id, referrer.account_id, referral.clicked_at, referral.clicked_at + 97 * DAY),
        id=messages.workflow_id(referral_id),
        task_queue=world.task_queue,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        start_signal=messages.SIGNUP,
        start_signal_args=[SignupReported(referral.referee_account_id)],
    )
    state = await world.outcome(referral_id)
    assert state.stage is Stage.SETTLED
    assert {role: (bonus.expires_at, bonus.expired_minutes) for role, bonus in state.bonuses.items()} == {
        role: (expires_at, 90) for role, expires_at in referral.expires_at.items()
    }
    assert await world.story(referral_id) == [Stage.SIGNED_UP, Stage.CREDITED, Stage.SETTLED]
    assert [lot.minutes for lot in await world.lots(referrer)] == [90]


async def test_the_state_can_be_asked_for_at_every_stage_and_after_the_end(world: World) -> None:
    referrer = await world.subscriber(started=20 * DAY)
    click = await world.click(referrer, start=False)
    # With no delay left the run is there at once, and waits for the signup.
    await world.runs.clicked(run_start(click, referrer), click.window.lapses_at)
    state = await until(lambda: world.state(click.referral_id), lambda _: True)
    assert state == messages.ReferralState()
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    state = await world.state(click.referral_id)
    referral = await world.referral(click.referral_id)
    assert state == messages.ReferralState(
        stage=Stage.SIGNED_UP, referee=friend.account_id, signed_up_at=referral.signed_up_at
    )
    await world.pay(friend)
    await world.reaches(click.referral_id, Stage.CREDITED)
    state = await world.state(click.referral_id)
    referral = await world.referral(click.referral_id)
    assert (state.plan, state.credited_at) == ("pro", referral.credited_at)
    assert state.bonuses == {role: messages.Bonus(90, at) for role, at in referral.expires_at.items()}
    ended = await world.outcome(click.referral_id)
    assert await world.state(click.referral_id) == ended
    assert ended.signed_up_at == referral.signed_up_at


async def test_signals_that_nobody_ought_to_send_do_no_harm(world: World) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    handle = world.handle(click.referral_id)
    far = await world.clock.now() + 1000 * DAY
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    await handle.signal(messages.SIGNUP, SignupReported("somebody-else"))
    await handle.signal(messages.SIGNUP, "no signup at all")
    await handle.signal(messages.CYCLE_MOVED, CycleMoved(Role.REFERRER, far))
    await handle.signal(messages.CYCLE_MOVED, {"role": "referrer", "expires_at": "2026-01-01T00:00:00"})
    await handle.signal(messages.CYCLE_MOVED, {"role": "somebody", "expires_at": far.isoformat()})
    await handle.signal("unheard_of")
    await handle.signal(messages.PAYMENT, PaymentReported("evt_forged"))
    state = await until(lambda: world.state(click.referral_id), lambda state: state.payments_looked_at == 1)
    assert (state.stage, state.referee, state.bonuses) == (Stage.SIGNED_UP, friend.account_id, {})
    await world.pay(friend)
    await world.reaches(click.referral_id, Stage.CREDITED)
    before = (await world.referral(click.referral_id)).expires_at
    await handle.signal(messages.CYCLE_MOVED, CycleMoved(Role.REFEREE, click.window.clicked_at))
    await handle.signal(messages.CYCLE_MOVED, {"role": "referee", "expires_at": "2199-01-01T00:00:00"})
    await handle.signal(messages.PAYMENT, PaymentReported("evt_forged_too"))
    state = await until(lambda: world.state(click.referral_id), lambda state: state.payments_reported == 3)
    assert {role: bonus.expires_at for role, bonus in state.bonuses.items()} == before
    state = await world.outcome(click.referral_id)
    assert {role: bonus.expires_at for role, bonus in state.bonuses.items()} == before
    assert state.referee == friend.account_id
    # Nor did they make the run look at bonuses that were not due.
    steps = [event.user_metadata.summary.data for event in await world.events(click.referral_id)]
    assert len([step for step in steps if b"expire what is due" in step]) == len(set(before.values()))


async def test_news_after_the_end_is_no_error_and_changes_nothing(world: World) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend", created_at=await world.clock.now() - DAY)
    await world.sign_up(click, referrer, friend)
    ended = await world.outcome(click.referral_id)
    start = run_start(click, referrer)
    with pytest.raises(ReferralOverError):
        await world.runs.payment_reported(start, friend.account_id, "evt_late")
    await world.runs.cycle_moved(click.referral_id, CycleMoved(Role.REFERRER, await world.clock.now()))
    with pytest.raises(ReferralOverError):
        await world.runs.signed_up(start, friend.account_id)
    with pytest.raises(ReferralOverError):
        await world.runs.clicked(start, await world.clock.now())
    assert await world.outcome(click.referral_id) == ended
    assert await world.story(click.referral_id) == [Stage.REFUSED]


@pytest.mark.parametrize("stage", [Stage.CLICKED, Stage.SIGNED_UP, Stage.CREDITED])
async def test_an_operator_can_cancel_a_run_at_any_stage(world: World, stage: Stage) -> None:
    referrer = await world.subscriber()
    if stage is Stage.CREDITED:
        referral_id = await credited(world, referrer)
    else:
        click = await world.click(referrer)
        referral_id = click.referral_id
    if stage is Stage.SIGNED_UP:
        await world.sign_up(click, referrer, await world.member("friend"))
        await world.reaches(referral_id, Stage.SIGNED_UP)
    await world.handle(referral_id).cancel()
    with pytest.raises(WorkflowFailureError) as failure:
        # Time must not run ahead meanwhile, past the end of the bonus.
        await world.handle(referral_id).result()
    assert isinstance(failure.value.cause, CancelledError)
    if stage is Stage.CREDITED:
        # What was credited stays, and still ends by the clock alone.
        assert [lot.state for lot in await world.lots(referrer)] == ["active"]
        await world.pass_time(31 * DAY)
        assert [lot.state for lot in await world.lots(referrer)] == ["expired"]
