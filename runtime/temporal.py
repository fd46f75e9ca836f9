"""The connection to Temporal, configured the SDK's own way (`TEMPORAL_*`), and what a namespace needs before use."""

import asyncio
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NoReturn, TypedDict

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    ListSearchAttributesRequest,
    ListSearchAttributesResponse,
)
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, RegisterNamespaceRequest
from temporalio.client import Client, Interceptor
from temporalio.envconfig import ClientConfig
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RPCError, RPCStatusCode

from workflows.messages import SEARCH_ATTRIBUTES
from workflows.payloads import DATA_CONVERTER

RETENTION = timedelta(days=30)
"""How long a new namespace keeps the history of closed runs."""

_NAMESPACE_KNOWN = timedelta(seconds=30)


def keep_quiet() -> None:
    """Let the SDK's native part write nothing: its log lines go to standard output, where a program's answer is."""
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=None)), error_if_already_set=False)


class _Options(TypedDict, total=False):
    lazy: bool
    runtime: Runtime
    interceptors: Sequence[Interceptor]


async def connect(
    *,
    lazy: bool = False,
    runtime: Runtime | None = None,
    interceptors: Sequence[Interceptor] = (),
    environment: Mapping[str, str] | None = None,
) -> Client:
    """Connect to the Temporal that the environment names.

    Args:
        lazy: connect on first use instead, so that a program starts while Temporal is away.
        runtime: the SDK's runtime, where its metrics are wanted.
        interceptors: around every call, and around everything that a worker on this connection does.
        environment: another environment than the process's.

    Raises:
        RuntimeError: Temporal cannot be reached.
    """
    options: _Options = {"lazy": lazy, "interceptors": interceptors}
    if runtime is not None:
        options["runtime"] = runtime
    # The SDK takes no other mapping.
    surrounding = None if environment is None else dict(environment)
    config = ClientConfig.load_client_connect_config(override_env_vars=surrounding)
    config.setdefault("target_host", "localhost:7233")
    return await Client.connect(**config, **options, data_converter=DATA_CONVERTER)


_ELSEWHERE = (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED, RPCStatusCode.UNAUTHENTICATED)
"""How a server answers that lets nobody make namespaces or search attributes by this road."""


class NotOursToMakeError(RuntimeError):
    """The server does not let this client make what is missing; the message says what, and where it is made."""


def _type_in_words(kind: "IndexedValueType.ValueType") -> str:
    """A search attribute's type as Temporal's tools call it, such as `KeywordList`."""
    return "".join(part.capitalize() for part in IndexedValueType.Name(kind).split("_")[3:])


_WANTED = {key.name: IndexedValueType.ValueType(key.indexed_value_type) for key in SEARCH_ATTRIBUTES}


async def attributes_amiss(client: Client) -> dict[str, str]:
    """What is wrong with the search attributes of the client's namespace, by their names; empty where nothing is.

    Raises:
        RPCError: the server refuses, or there is no such namespace.
    """
    request = ListSearchAttributesRequest(namespace=client.namespace)
    present = (await client.operator_service.list_search_attributes(request)).custom_attributes
    missing = {name: "is missing" for name in _WANTED if name not in present}
    others = {name for name, wanted in _WANTED.items() if present.get(name, wanted) != wanted}
    return missing | dict.fromkeys(others, "is registered with another type")


async def set_up_namespace(client: Client) -> bool:
    """Make the client's namespace, if it is missing, and register the search attributes that it lacks.

    Returns:
        Whether anything had to be done.

    Raises:
        NotOursToMakeError: it has to be done elsewhere, as with Temporal Cloud; the message says what.
        RPCError: the server refuses for another reason.
    """
    made = await _make_namespace(client)
    present = await _registered(client)
    missing = {name: wanted for name, wanted in _WANTED.items() if name not in present.custom_attributes}
    if missing:
        try:
            await client.operator_service.add_search_attributes(
                AddSearchAttributesRequest(namespace=client.namespace, search_attributes=missing)
            )
        except RPCError as error:
            if error.status not in _ELSEWHERE:
                raise
            lacks = ", ".join(f"{name}={_type_in_words(kind)}" for name, kind in missing.items())
            raise NotOursToMakeError(
                f"the search attributes of namespace {client.namespace} are made elsewhere (on Temporal Cloud: its "
                f"console, tcld or Terraform); it lacks {lacks}"
            ) from None
    return made or bool(missing)


async def _registered(client: Client) -> ListSearchAttributesResponse:
    """The search attributes of the namespace.

    A namespace that has just been made is not known to every part of the server at once.
    """
    request = ListSearchAttributesRequest(namespace=client.namespace)
    deadline = asyncio.get_running_loop().time() + _NAMESPACE_KNOWN.total_seconds()
    while True:
        try:
            return await client.operator_service.list_search_attributes(request)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(0.2)


async def _make_namespace(client: Client) -> bool:
    try:
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        retention = Duration()
        retention.FromTimedelta(RETENTION)
        try:
            await client.workflow_service.register_namespace(
                RegisterNamespaceRequest(namespace=client.namespace, workflow_execution_retention_period=retention)
            )
        except RPCError as refusal:
            if refusal.status not in _ELSEWHERE:
                raise
            raise NotOursToMakeError(
                f"namespace {client.namespace} is made elsewhere (on Temporal Cloud: its console, tcld or Terraform), "
                f"with a retention of {RETENTION.days} days; there its name ends with the account's: name.a1b2c"
            ) from None
        return True
    return False


def leave(status: int) -> NoReturn:
    """End a process that used a client: flush what was written, and skip the interpreter's own teardown.

    The SDK's native threads outlive the event loop, and now and then one of them still wants the interpreter while that
    is torn down, which aborts the process after all its work is done (sdk-python issue 300).
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
