"""What happens at once, twice or in the wrong order, with the real ledger."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from temporalio.api.enums.v1 import EventType

from program.referral import Role, Stage
from tests.stripe_events import invoice_paid, subscription
from tests.support import AtStep, World, run_start, until
from workflows import messages
from workflows.messages import CycleMoved, PaymentReported, SignupReported

DAY = timedelta(days=1)
MONTH = timedelta(days=30)
ONCE = [Stage.SIGNED_UP, Stage.CREDITED, Stage.SETTLED]


@pytest.mark.parametrize(
    "when", ["before the signup", "before the attribution", "during it", "right behind it", "after it"]
)
async def test_rule_6_a_payment_counts_whenever_it_comes(idle_world: World, when: str) -> None:
    world = idle_world
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")

    async def pay() -> None:
        await world.pay(friend)

    at_attribution = AtStep(
        "attribute_signup",
        before=pay if when == "during it" else None,
        after=pay if when == "right behind it" else None,
    )
    if when == "before the signup":
        await pay()
    if when == "before the attribution":
        # No worker runs yet: both are kept by the server until one does.
        await world.sign_up(click, referrer, friend)
        await pay()
    async with world.worker(at_attribution):
        if when != "before the attribution":
            await world.sign_up(click, referrer, friend)
        if when == "after it":
            await world.reaches(click.referral_id, Stage.SIGNED_UP)
            await pay()
        await world.reaches(click.referral_id, Stage.CREDITED)
        [mine], [theirs] = await world.lots(referrer), await world.lots(friend)
        assert mine.credited_at == theirs.credited_at
        assert (await world.outcome(click.referral_id)).stage is Stage.SETTLED
    assert await world.story(click.referral_id) == ONCE


async def test_rules_3_and_6_one_payment_reported_five_times_is_credited_once(world: World) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    now = await world.clock.now()
    paid = invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH)
    seen = subscription(friend.customer_id, friend.subscription_id, now, now + MONTH)
    await world.report(seen, *[paid] * 5)
    # The same invoice in five events of their own, and five signals that come from nowhere.
    for _ in range(5):
        again = {**paid, "id": f"{paid['id']}_again_{_}"}
        await world.report(again)
    for number in range(5):
        await world.handle(click.referral_id).signal(messages.PAYMENT, PaymentReported(f"evt_reconciled_{number}"))
    await world.reaches(click.referral_id, Stage.CREDITED)
    state = await world.outcome(click.referral_id)
    assert state.payments_reported >= 6
    assert await world.story(click.referral_id) == ONCE
    assert [lot.minutes for lot in await world.lots(referrer)] == [90]
    assert [lot.minutes for lot in await world.lots(friend)] == [90]


async def test_rules_3_and_6_five_payments_during_the_credit_are_one_credit(idle_world: World) -> None:
    world = idle_world
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")

    async def five_signals() -> None:
        for number in range(5):
            await world.handle(click.referral_id).signal(messages.PAYMENT, PaymentReported(f"evt_{number}"))

    around = AtStep("credit_both", before=five_signals, after=five_signals)
    async with world.worker(around):
        await world.sign_up(click, referrer, friend)
        await world.reaches(click.referral_id, Stage.SIGNED_UP)
        await world.pay(friend)
        state = await world.outcome(click.referral_id)
    assert around.happened
    assert (state.stage, state.payments_reported) == (Stage.SETTLED, 11)
    assert await world.story(click.referral_id) == ONCE
    assert [lot.minutes for lot in await world.lots(referrer)] == [90]


@pytest.mark.parametrize("visible", [False, True], ids=["local step", "visible step"])
async def test_rule_14_a_payment_that_comes_while_nothing_is_found_yet_is_not_lost(
    idle_world: World, visible: bool
) -> None:
    world = idle_world
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")

    async def pay() -> None:
        await world.pay(friend)
        if visible:
            await until(lambda: world.state(click.referral_id), lambda state: state.payments_reported > 1)

    looked_in_vain = AtStep("credit_both", after=pay, visible=visible)
    async with world.worker(looked_in_vain):
        await world.sign_up(click, referrer, friend)
        await world.reaches(click.referral_id, Stage.SIGNED_UP)
        await world.handle(click.referral_id).signal(messages.PAYMENT, PaymentReported("evt_of_a_trial"))
        await world.reaches(click.referral_id, Stage.CREDITED)
    assert looked_in_vain.happened


@pytest.mark.parametrize(
    ("referrers_end", "friends_end", "expected"),
    [
        (5 * DAY, 20 * DAY, [{Role.REFERRER}, {Role.REFERRER, Role.REFEREE}]),
        (20 * DAY, 5 * DAY, [{Role.REFEREE}, {Role.REFERRER, Role.REFEREE}]),
        (15 * DAY, 15 * DAY, [{Role.REFERRER, Role.REFEREE}]),
    ],
    ids=["the referrer's first", "the friend's first", "both at once"],
)
async def test_rule_7_each_bonus_expires_with_its_own_cycle(
    world: World, referrers_end: timedelta, friends_end: timedelta, expected: list[set[Role]]
) -> None:
    # Stripe knows whole seconds only; both cycles end at whole ones after this.
    now = (await world.clock.now()).replace(microsecond=0) + timedelta(seconds=1)
    referrer = await world.subscriber(started=DAY, length=2 * DAY)
    cycle = await world.cycle(referrer)
    await world.report(
        subscription(
            referrer.customer_id,
            referrer.subscription_id,
            cycle.start,
            now + referrers_end,
            type_="customer.subscription.updated",
        )
    )
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    paid_at = await world.clock.now()
    end = now + friends_end
    await world.report(
        subscription(friend.customer_id, friend.subscription_id, paid_at, end),
        invoice_paid(friend.customer_id, friend.subscription_id, paid_at, end),
    )
    await world.reaches(click.referral_id, Stage.CREDITED)
    ends = (await world.referral(click.referral_id)).expires_at
    assert ends == {Role.REFERRER: now + referrers_end, Role.REFEREE: end}
    seen: list[set[Role]] = []
    for at in sorted(set(ends.values())):
        due = {role for role in Role if ends[role] <= at}
        await world.pass_time(at - await world.clock.now() - timedelta(minutes=1))
        state = await world.state(click.referral_id)
        before = {role for role, bonus in state.bonuses.items() if bonus.expired_minutes is not None}
        assert before == (seen[-1] if seen else set()), "a bonus expired before its time"
        await world.pass_time(timedelta(minutes=1))

        async def over() -> set[Role]:
            state = await world.state(click.referral_id)
            return {role for role, bonus in state.bonuses.items() if bonus.expired_minutes is not None}

        seen.append(await until(over, lambda over, due=due: over == due))  # type: ignore[misc]
    assert seen == expected
    assert (await world.outcome(click.referral_id)).stage is Stage.SETTLED
    assert await world.story(click.referral_id) == ONCE
    steps = [name for name in await local_steps(world, click.referral_id) if name == "expire_bonuses"]
    assert len(steps) == len(expected)


async def local_steps(world: World, referral_id: str) -> Iterator[str]:
    """The steps that a run took within its own tasks."""
    events = await world.events(referral_id)
    markers = [event.user_metadata for event in events if event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED]
    names = {"does the signup count?": "attribute_signup", "credit both": "credit_both", "expire": "expire_bonuses"}
    summaries = [marker.summary.data.decode() for marker in markers]
    return (name for summary in summaries for words, name in names.items() if words in summary)


async def test_rule_15_a_signup_in_time_counts_although_no_worker_hears_of_it_in_time(live_idle_world: World) -> None:
    """Both the end of the start delay and the signup wait for a worker; the signup wins."""
    # On the real server: the time-skipping one stands still while a task waits for a worker.
    world = live_idle_world
    referrer = await world.subscriber()
    click = await world.click(referrer, ago=97 * DAY - timedelta(seconds=2))
    friend = await world.member("friend", created_at=click.window.clicked_at + 80 * DAY)
    await world.sign_up(click, referrer, friend)
    await until(world.clock.now, lambda now: now > click.window.lapses_at)
    async with world.worker():
        assert await world.reaches(click.referral_id, Stage.SIGNED_UP, Stage.LAPSED) is Stage.SIGNED_UP


async def test_rule_15_a_signup_beats_the_timer_that_fired_in_the_same_task(live_idle_world: World) -> None:
    world = live_idle_world
    referrer = await world.subscriber()

    async def has(kind: EventType.ValueType) -> bool:
        return any(event.event_type == kind for event in await world.events(click.referral_id))

    async with world.worker():
        # Not before: the worker has to be gone again when the timer fires.
        click = await world.click(referrer, start=False, ago=97 * DAY - timedelta(seconds=8))
        friend = await world.member("friend", created_at=click.window.clicked_at + DAY)
        # Without a delay the run waits for the signup by a timer of its own.
        await world.runs.clicked(run_start(click, referrer), click.window.lapses_at)
        await until(lambda: has(EventType.EVENT_TYPE_TIMER_STARTED), bool)
    await until(lambda: has(EventType.EVENT_TYPE_TIMER_FIRED), bool)
    await world.sign_up(click, referrer, friend)
    async with world.worker():
        assert await world.reaches(click.referral_id, Stage.SIGNED_UP, Stage.LAPSED) is Stage.SIGNED_UP


async def test_news_in_the_very_task_that_ends_the_run_is_heard(idle_world: World) -> None:
    world = idle_world
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend", created_at=await world.clock.now() - DAY)
    handle = world.handle(click.referral_id)

    async def news() -> None:
        await handle.signal(messages.PAYMENT, PaymentReported("evt_late"))
        await handle.signal(messages.CYCLE_MOVED, CycleMoved(Role.REFERRER, await world.clock.now()))
        await handle.signal(messages.SIGNUP, SignupReported("somebody-else"))

    at_the_end = AtStep("attribute_signup", after=news)
    async with world.worker(at_the_end):
        await world.sign_up(click, referrer, friend)
        state = await world.outcome(click.referral_id)
    assert at_the_end.happened
    assert (state.stage, state.payments_reported, state.referee) == (Stage.REFUSED, 1, friend.account_id)


@pytest.mark.parametrize("visible", [False, True], ids=["local step", "visible step"])
async def test_rule_9_a_cycle_that_moves_before_the_run_knows_of_its_bonus(idle_world: World, visible: bool) -> None:
    """The news comes between the credit's commit and the run's hearing of it, and so to a run without a bonus."""
    world = idle_world
    referrer = await world.subscriber(started=20 * DAY)
    end = (await world.cycle(referrer)).end
    click = await world.click(referrer)
    friend = await world.member("friend")
    moved = end + 5 * DAY

    async def move() -> None:
        await world.report(
            subscription(
                referrer.customer_id,
                referrer.subscription_id,
                end - MONTH,
                moved,
                type_="customer.subscription.updated",
            )
        )

    async with world.worker(AtStep("credit_both", after=move, visible=visible)):
        await world.sign_up(click, referrer, friend)
        await world.reaches(click.referral_id, Stage.SIGNED_UP)
        await world.pay(friend)
        await world.reaches(click.referral_id, Stage.CREDITED)
        await world.pass_time(end - await world.clock.now() + DAY)
        [lot] = await world.lots(referrer)
        assert (lot.state, lot.expires_at) == ("active", moved)
        state = await world.outcome(click.referral_id)
    assert state.bonuses[Role.REFERRER].expires_at == moved
    assert state.bonuses[Role.REFERRER].expired_minutes == 90


@pytest.mark.parametrize("visible", [False, True], ids=["local step", "visible step"])
async def test_rule_9_a_cycle_that_moves_while_the_other_bonus_expires(idle_world: World, visible: bool) -> None:
    world = idle_world
    referrer = await world.subscriber(started=20 * DAY)
    click = await world.click(referrer)
    friend = await world.member("friend")
    wanted = None

    async def move() -> None:
        nonlocal wanted
        now = await world.clock.now()
        cycle = await world.cycle(friend)
        wanted = now.replace(microsecond=0) + 20 * DAY
        await world.report(
            subscription(
                friend.customer_id, friend.subscription_id, cycle.start, wanted, type_="customer.subscription.updated"
            )
        )
        if visible:
            # The run has heard of it before it hears of what expired.
            await until(
                lambda: world.state(click.referral_id), lambda state: state.bonuses[Role.REFEREE].expires_at == wanted
            )

    async with world.worker(AtStep("expire_bonuses", after=move, visible=visible)):
        await world.sign_up(click, referrer, friend)
        await world.reaches(click.referral_id, Stage.SIGNED_UP)
        await world.pay(friend, length=15 * DAY)
        await world.reaches(click.referral_id, Stage.CREDITED)
        await world.pass_time(12 * DAY)
        await until(
            lambda: world.state(click.referral_id), lambda state: state.bonuses[Role.REFEREE].expires_at == wanted
        )
        attributes = (await world.handle(click.referral_id).describe()).typed_search_attributes
        assert attributes[messages.BONUS_EXPIRES_AT] == wanted
        state = await world.outcome(click.referral_id)
    assert state.stage is Stage.SETTLED
    assert state.bonuses[Role.REFEREE].expires_at == wanted
    assert (await world.referral(click.referral_id)).expires_at[Role.REFEREE] == wanted


async def test_the_same_click_and_the_same_signup_again_are_one_run(world: World) -> None:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    await world.runs.clicked(run_start(click, referrer), await world.clock.now())
    friend = await world.member("friend")
    for _ in range(3):
        await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    await world.runs.clicked(run_start(click, referrer), await world.clock.now())
    await world.pay(friend)
    assert (await world.outcome(click.referral_id)).stage is Stage.SETTLED
    assert await world.story(click.referral_id) == ONCE
