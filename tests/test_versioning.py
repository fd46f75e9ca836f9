"""A versioned worker (AUTO_UPGRADE) on the real server: runs go on with the newest release by themselves."""

from datetime import timedelta

from temporalio.api.workflowservice.v1 import SetWorkerDeploymentCurrentVersionRequest
from temporalio.service import RPCError, RPCStatusCode

from program.referral import Stage
from runtime.settings import WorkerSettings
from tests.stripe_events import unique
from tests.support import World, until
from worker import deployment


def release(name: str, build: str) -> WorkerSettings:
    """The settings of a worker of that release."""
    return WorkerSettings(database_url="postgresql://nobody@localhost/none", deployment_name=name, build_id=build)


async def make_current(world: World, name: str, build: str) -> None:
    """Let a release take all runs, as an operator does once its workers are up."""
    service, namespace = world.environment.client.workflow_service, world.environment.client.namespace

    async def accepted() -> bool:
        try:
            await service.set_worker_deployment_current_version(
                SetWorkerDeploymentCurrentVersionRequest(namespace=namespace, deployment_name=name, build_id=build)
            )
        except RPCError as error:
            # The server has not seen the release's workers ask for every kind of work yet.
            if error.status not in (RPCStatusCode.NOT_FOUND, RPCStatusCode.FAILED_PRECONDITION):
                raise
            return False
        return True

    await until(accepted, bool)


async def builds(world: World, referral_id: str) -> list[str]:
    """The builds that completed the run's tasks, in order."""
    return [
        event.workflow_task_completed_event_attributes.deployment_version.build_id
        for event in await world.events(referral_id)
        if event.HasField("workflow_task_completed_event_attributes")
    ]


async def test_a_run_of_one_release_goes_on_with_the_next(live_idle_world: World) -> None:
    world, name = live_idle_world, unique("referrals")
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    async with world.worker(versions=deployment(release(name, "1"))):
        await make_current(world, name, "1")
        await world.sign_up(click, referrer, friend)
        await world.reaches(click.referral_id, Stage.SIGNED_UP)
    assert set(await builds(world, click.referral_id)) == {"1"}
    async with world.worker(versions=deployment(release(name, "2"))):
        await make_current(world, name, "2")
        await world.pay(friend, length=timedelta(days=1))
        await world.reaches(click.referral_id, Stage.CREDITED)
    seen = await builds(world, click.referral_id)
    assert (seen[0], seen[-1]) == ("1", "2")
    info = (await world.handle(click.referral_id).describe()).raw_description.workflow_execution_info
    assert info.versioning_info.deployment_version.build_id == "2"
    assert await world.story(click.referral_id) == [Stage.SIGNED_UP, Stage.CREDITED]


async def test_what_came_in_before_a_release_was_made_current_is_not_lost(live_idle_world: World) -> None:
    world, name = live_idle_world, unique("referrals")
    referrer = await world.subscriber()
    click = await world.click(referrer)
    friend = await world.member("friend")
    async with world.worker(versions=deployment(release(name, "1"))):
        await world.sign_up(click, referrer, friend)
        await make_current(world, name, "1")
        await world.reaches(click.referral_id, Stage.SIGNED_UP)
