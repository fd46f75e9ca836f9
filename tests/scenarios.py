"""Every way that a referral can go so far, each in seconds of real time: what is recorded, and what is measured."""

import math
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from program.referral import Role, Stage
from tests.stripe_events import invoice_paid, subscription
from tests.support import Member, World, run_start, until
from workflows import messages
from workflows.messages import PaymentReported

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)

Scenario = Callable[[World, "Trouble"], Awaitable[str]]
SCENARIOS: dict[str, Scenario] = {}
"""By the name of its history's file; each gives the referral's id."""


class Trouble(Interceptor):
    """Makes chosen steps of chosen referrals fail, as long as they are taken locally."""

    def __init__(self) -> None:
        self.local_steps: set[tuple[str, str]] = set()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        trouble = self

        class Inbound(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
                info = activity.info()
                about = getattr(input.args[0], "referral_id", input.args[0])
                if info.is_local and (info.activity_type, about) in trouble.local_steps:
                    raise ConnectionError("the database is away")
                return await super().execute_activity(input)

        return Inbound(next)


def scenario(tell: Scenario) -> Scenario:
    """Take it into the collection."""
    SCENARIOS[tell.__name__] = tell
    return tell


async def signed_up(world: World) -> tuple[str, Member, Member]:
    """A referral whose signup is attributed, its referrer and its friend."""
    began = await world.clock.now()
    referrer = await _referrer(world)
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    world.signup_took = max(world.signup_took, await world.clock.now() - began)
    return click.referral_id, referrer, friend


def slack(world: World) -> timedelta:
    """How much longer a cycle lasts than its story needs, so that it is not over before the credit: whole seconds."""
    return timedelta(seconds=math.ceil(3 * world.signup_took.total_seconds()))


async def _referrer(world: World) -> Member:
    """A referrer whose cycle has just ended; Stripe is about to collect the next one."""
    return await world.subscriber(started=10 * DAY, length=10 * DAY - HOUR)


async def credited(world: World, referral_id: str, referrer: Member, friend: Member, *ends: timedelta) -> datetime:
    """Both pay for a cycle, the friend for the first time; the cycles end that long from now, on a slow machine later.

    Returns:
        When both cycles began.
    """
    # Stripe knows whole seconds.
    now = (await world.clock.now()).replace(microsecond=0)
    for member, end in zip((referrer, friend), ends, strict=True):
        period = (member.customer_id, member.subscription_id, now, now + SECOND + end + slack(world))
        await world.report(subscription(*period), invoice_paid(*period))
    # On a busy machine the cycles may be over by the time that this looks.
    await world.reaches(referral_id, Stage.CREDITED, Stage.SETTLED)
    return now


async def _settled(world: World, referrers_end: timedelta, friends_end: timedelta) -> str:
    referral_id, referrer, friend = await signed_up(world)
    await credited(world, referral_id, referrer, friend, referrers_end, friends_end)
    assert (await world.outcome(referral_id)).stage is Stage.SETTLED
    return referral_id


@scenario
async def settled_referrer_first(world: World, _: Trouble) -> str:
    return await _settled(world, 3 * SECOND, 5 * SECOND)


@scenario
async def settled_friend_first(world: World, _: Trouble) -> str:
    return await _settled(world, 5 * SECOND, 3 * SECOND)


@scenario
async def settled_both_at_once(world: World, _: Trouble) -> str:
    return await _settled(world, 3 * SECOND, 3 * SECOND)


@scenario
async def settled_paid_before_the_signup(world: World, _: Trouble) -> str:
    # Somebody else first, to know how slow this machine is.
    await signed_up(world)
    referrer = await world.subscriber(started=10 * DAY, length=10 * DAY + 5 * SECOND + slack(world))
    click = await world.click(referrer)
    friend = await world.member("friend")
    await world.pay(friend, length=4 * SECOND + slack(world))
    await world.sign_up(click, referrer, friend)
    await world.outcome(click.referral_id)
    return click.referral_id


@scenario
async def settled_after_a_moved_cycle(world: World, _: Trouble) -> str:
    referral_id, referrer, friend = await signed_up(world)
    start = await credited(world, referral_id, referrer, friend, 4 * SECOND, 6 * SECOND)
    before = (await world.state(referral_id)).bonuses
    await world.report(
        subscription(
            referrer.customer_id,
            referrer.subscription_id,
            start,
            before[Role.REFERRER].expires_at + 3 * SECOND,
            type_="customer.subscription.updated",
        )
    )
    await until(lambda: world.state(referral_id), lambda state: state.bonuses != before)
    await world.outcome(referral_id)
    return referral_id


@scenario
async def settled_with_payments_told_again(world: World, _: Trouble) -> str:
    referral_id, referrer, friend = await signed_up(world)
    for number in (1, 2):
        await world.handle(referral_id).signal(messages.PAYMENT, PaymentReported(f"evt_{number}"))
        await until(lambda: world.state(referral_id), lambda state, n=number: state.payments_looked_at == n)  # type: ignore[misc]
    await credited(world, referral_id, referrer, friend, 4 * SECOND, 4 * SECOND)
    await world.handle(referral_id).signal(messages.PAYMENT, PaymentReported("evt_3"))
    await world.outcome(referral_id)
    return referral_id


@scenario
async def settled_after_an_unknown_price(world: World, _: Trouble) -> str:
    referral_id, referrer, friend = await signed_up(world)
    now = await world.clock.now()
    # A price of its own, for what is learnt of it is known to all who buy it.
    price = f"mystery_{referral_id}"
    await world.report(
        invoice_paid(friend.customer_id, friend.subscription_id, now - DAY, now + 5 * DAY, plan=price, paid_at=now)
    )
    await until(lambda: world.state(referral_id), lambda state: state.needs_attention is not None)
    await credited(world, referral_id, referrer, friend, 4 * SECOND, 4 * SECOND)
    await world.outcome(referral_id)
    return referral_id


@scenario
async def settled_by_visible_activities(world: World, trouble: Trouble) -> str:
    referrer = await _referrer(world)
    click = await world.click(referrer)
    for step in ("attribute_signup", "credit_both", "expire_bonuses"):
        trouble.local_steps.add((step, click.referral_id))
    friend = await world.member("friend")
    await world.sign_up(click, referrer, friend)
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    await credited(world, click.referral_id, referrer, friend, 4 * SECOND, 4 * SECOND)
    await world.outcome(click.referral_id)
    return click.referral_id


@scenario
async def lapsed_without_a_signup(world: World, _: Trouble) -> str:
    referrer = await world.subscriber()
    click = await world.click(referrer, ago=97 * DAY - 2 * SECOND)
    assert (await world.outcome(click.referral_id)).stage is Stage.LAPSED
    return click.referral_id


@scenario
async def lapsed_without_a_start_delay(world: World, _: Trouble) -> str:
    referrer = await world.subscriber()
    click = await world.click(referrer, start=False, ago=97 * DAY - 3 * SECOND)
    await world.runs.clicked(run_start(click, referrer), click.window.lapses_at)
    assert (await world.outcome(click.referral_id)).stage is Stage.LAPSED
    return click.referral_id


@scenario
async def lapsed_with_a_signup_too_late(world: World, _: Trouble) -> str:
    referrer = await world.subscriber()
    click = await world.click(referrer, ago=91 * DAY)
    await world.sign_up(click, referrer, await world.member("friend"))
    assert (await world.outcome(click.referral_id)).stage is Stage.LAPSED
    return click.referral_id


@scenario
async def refused_at_the_signup(world: World, _: Trouble) -> str:
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend", created_at=await world.clock.now() - DAY)
    await world.sign_up(click, referrer, friend)
    assert (await world.outcome(click.referral_id)).stage is Stage.REFUSED
    return click.referral_id


@scenario
async def refused_before_the_credit(world: World, _: Trouble) -> str:
    referral_id, referrer, friend = await signed_up(world)
    friend.email = referrer.email
    await world.put(friend)
    await world.pay(friend)
    assert (await world.outcome(referral_id)).stage is Stage.REFUSED
    return referral_id


async def _held(world: World) -> str:
    referral_id, referrer, friend = await signed_up(world)
    now = (await world.clock.now()).replace(microsecond=0)
    for member in (referrer, friend):
        period = (member.customer_id, member.subscription_id, now, now + 8 * SECOND + slack(world))
        payment = [subscription(*period), invoice_paid(*period)]
        if member is friend:
            # The refund is known before the payment: nobody is credited between the two.
            await world.refund(payment, amount=100)
        await world.report(*payment)
    await world.reaches(referral_id, Stage.IN_REVIEW)
    return referral_id


@scenario
async def settled_after_an_approval(world: World, _: Trouble) -> str:
    referral_id = await _held(world)
    await world.review(messages.workflow_id(referral_id), "approve")
    assert (await world.outcome(referral_id)).stage is Stage.SETTLED
    return referral_id


@scenario
async def refused_by_an_operator(world: World, _: Trouble) -> str:
    referral_id = await _held(world)
    await world.review(messages.workflow_id(referral_id), "reject")
    assert (await world.outcome(referral_id)).stage is Stage.REFUSED
    return referral_id


@scenario
async def voided_before_the_credit(world: World, _: Trouble) -> str:
    referral_id, *_rest = await signed_up(world)
    await world.void(messages.workflow_id(referral_id))
    assert (await world.outcome(referral_id)).stage is Stage.VOIDED
    return referral_id


@scenario
async def credited_and_voided_by_a_visible_activity(world: World, trouble: Trouble) -> str:
    referral_id, referrer, friend = await signed_up(world)
    await credited(world, referral_id, referrer, friend, HOUR, HOUR)
    trouble.local_steps.add(("decide", referral_id))
    await world.void(messages.workflow_id(referral_id))
    assert (await world.outcome(referral_id)).stage is Stage.CREDITED
    return referral_id


@scenario
async def settled_with_a_refund_to_review(world: World, _: Trouble) -> str:
    referral_id, referrer, friend = await signed_up(world)
    start = (await world.clock.now()).replace(microsecond=0)
    for member in (referrer, friend):
        period = (member.customer_id, member.subscription_id, start, start + 5 * SECOND + slack(world))
        payment = [subscription(*period), invoice_paid(*period)]
        await world.report(*payment)
    await world.reaches(referral_id, Stage.CREDITED)
    await world.refund(payment, amount=100)
    assert (await world.outcome(referral_id)).stage is Stage.SETTLED
    return referral_id


@scenario
async def refused_for_the_friend_was_erased(world: World, _: Trouble) -> str:
    referral_id, _referrer, friend = await signed_up(world)
    await world.erase(friend)
    assert (await world.outcome(referral_id)).stage is Stage.REFUSED
    return referral_id


@scenario
async def settled_with_an_erased_friend(world: World, _: Trouble) -> str:
    referral_id, referrer, friend = await signed_up(world)
    await credited(world, referral_id, referrer, friend, 4 * SECOND, 5 * SECOND)
    await world.erase(friend)
    assert (await world.outcome(referral_id)).stage is Stage.SETTLED
    return referral_id


@scenario
async def cancelled_by_an_operator(world: World, _: Trouble) -> str:
    referral_id, *_rest = await signed_up(world)
    await world.handle(referral_id).cancel()
    await until(lambda: world.handle(referral_id).describe(), lambda described: described.close_time is not None)
    return referral_id
