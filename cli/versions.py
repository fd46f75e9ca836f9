"""Which release of the workers runs go to: shows it, and makes one current, wholly or for a share of all runs."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from temporalio.api.enums.v1 import VersionDrainageStatus
from temporalio.api.workflowservice.v1 import (
    DescribeWorkerDeploymentRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    SetWorkerDeploymentRampingVersionRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from cli.answers import row, table
from cli.waiting import waited_for

LOOK = timedelta(seconds=1)
"""How often it is looked whether the release's workers are there."""

_NOT_THERE_YET = (RPCStatusCode.NOT_FOUND, RPCStatusCode.FAILED_PRECONDITION)


class NoVersionsError(Exception):
    """No versioned worker of that deployment has ever asked this namespace for work."""


@dataclass(frozen=True, slots=True)
class Version:
    """A release whose workers Temporal knows.

    Args:
        build_id: of the release.
        current: whether runs go to it.
        ramp: the share of runs that goes to it while it is tried, in percent; none where it is not.
        drained: whether no run is left on it; none where it was never current.
    """

    build_id: str
    current: bool
    ramp: float | None
    drained: bool | None


@dataclass(frozen=True, slots=True)
class Versions:
    """How a deployment stands.

    Args:
        deployment: its name.
        current: the release to which all runs go that no ramp takes; none before one was made current.
        versions: all that Temporal knows.
    """

    deployment: str
    current: str | None
    versions: tuple[Version, ...]


async def versions(client: Client, deployment: str) -> Versions:
    """Look how a deployment stands.

    Raises:
        NoVersionsError: there is none of that name.
        RPCError: Temporal cannot be reached, or refuses.
    """
    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=deployment)
    try:
        info = (await client.workflow_service.describe_worker_deployment(request)).worker_deployment_info
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        raise NoVersionsError(f"no worker of a deployment {deployment} has asked {client.namespace} for work") from None
    routing = info.routing_config
    current = routing.current_deployment_version.build_id or None
    ramping = routing.ramping_deployment_version.build_id
    return Versions(
        deployment,
        current,
        tuple(
            Version(
                each.deployment_version.build_id,
                each.deployment_version.build_id == current,
                routing.ramping_version_percentage if each.deployment_version.build_id == ramping else None,
                _drained(each.drainage_status),
            )
            for each in sorted(info.version_summaries, key=lambda each: each.create_time.ToNanoseconds(), reverse=True)
        ),
    )


def _drained(status: "VersionDrainageStatus.ValueType") -> bool | None:
    if status == VersionDrainageStatus.VERSION_DRAINAGE_STATUS_UNSPECIFIED:
        return None
    return status == VersionDrainageStatus.VERSION_DRAINAGE_STATUS_DRAINED


async def make_current(
    client: Client,
    deployment: str,
    build_id: str,
    ramp: float | None,
    say: Callable[[str], None],
    patience: timedelta,
) -> Versions:
    """Have a release take all runs, or a share of them; it waits for its workers.

    Args:
        client: knows the namespace.
        deployment: its name.
        build_id: of the release; an earlier one is a rollback.
        ramp: the share in percent; without it all, and a ramp under way is over. 0 ends a ramp.
        say: hears what keeps it.
        patience: how long its workers are waited for.

    Raises:
        NoAnswerError: no worker of it asked for work in time, or not for all that the current one does.
        RPCError: Temporal cannot be reached, or refuses.
    """
    last = ""

    async def accepted() -> None:
        nonlocal last
        while True:
            try:
                await _set(client, deployment, build_id, ramp)
            except RPCError as error:
                if error.status not in _NOT_THERE_YET:
                    raise
                last = error.message
            else:
                return
            await asyncio.sleep(LOOK.total_seconds())

    async def problem() -> str | None:
        return last or None

    await waited_for(accepted(), problem, say, patience=patience)
    return await versions(client, deployment)


async def _set(client: Client, deployment: str, build_id: str, ramp: float | None) -> None:
    service, namespace = client.workflow_service, client.namespace
    if ramp is not None:
        await service.set_worker_deployment_ramping_version(
            SetWorkerDeploymentRampingVersionRequest(
                namespace=namespace,
                deployment_name=deployment,
                build_id=build_id,
                percentage=ramp,
                identity=client.identity,
            )
        )
        return
    await service.set_worker_deployment_current_version(
        SetWorkerDeploymentCurrentVersionRequest(
            namespace=namespace, deployment_name=deployment, build_id=build_id, identity=client.identity
        )
    )


def render(found: Versions, to: Console) -> None:
    """Show how a deployment stands."""
    shown = table("release", "", "runs left on it")
    for each in found.versions:
        state = "current" if each.current else "" if each.ramp is None else f"takes {each.ramp:g}%"
        left = {None: "", True: "none", False: "some"}[each.drained]
        row(shown, each.build_id, state, left)
    to.print(shown)
    if found.current is None:
        to.print("none is current: versioned workers are given nothing (referrals set-current-version)")
