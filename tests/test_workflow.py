"""A referral's life on the time-skipping server, with the real ledger."""

from datetime import timedelta

from program.referral import Role, Stage
from tests.support import World


async def test_rule_3_and_7_from_click_to_the_expiry_of_both_bonuses(world: World) -> None:
    referrer = await world.subscriber(started=timedelta(days=20))
    click = await world.click(referrer)
    friend = await world.member("friend")
    reservation = await world.sign_up(click, referrer, friend)
    assert reservation.referral_id == click.referral_id
    await world.reaches(click.referral_id, Stage.SIGNED_UP)
    await world.pay(friend)
    await world.reaches(click.referral_id, Stage.CREDITED)
    credited = await world.referral(click.referral_id)
    assert credited.bonus_minutes == 90
    state = await world.outcome(click.referral_id)
    assert state.stage is Stage.SETTLED
    assert {role: bonus.expired_minutes for role, bonus in state.bonuses.items()} == {
        Role.REFERRER: 90,
        Role.REFEREE: 90,
    }
    assert await world.story(click.referral_id) == [Stage.SIGNED_UP, Stage.CREDITED, Stage.SETTLED]
