"""Temporal Cloud: its settings are read the SDK's own way, and what is made elsewhere there is named."""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesResponse
from temporalio.client import Client
from temporalio.service import RPCStatusCode, TLSConfig

from runtime.temporal import NotOursToMakeError, connect, set_up_namespace
from tests.operator_support import Operator
from workflows.messages import SEARCH_ATTRIBUTES

CLOUD = "eu-central-1.aws.api.temporal.io:7233"
NAMESPACE = "referrals.a1b2c"


async def test_an_api_key_is_taken_from_the_environment_and_goes_over_tls_alone() -> None:
    key = {"TEMPORAL_NAMESPACE": NAMESPACE, "TEMPORAL_API_KEY": "a-key-of-the-cloud"}
    client = await connect(lazy=True, environment={"TEMPORAL_ADDRESS": CLOUD, **key})
    config = client.service_client.config
    assert (config.target_host, client.namespace, config.api_key) == (CLOUD, NAMESPACE, "a-key-of-the-cloud")

    first: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first.put_nowait(await reader.read(3))
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with pytest.raises(RuntimeError):
        await connect(environment={"TEMPORAL_ADDRESS": address, **key})
    server.close()
    # Nobody said TEMPORAL_TLS; what comes first is a handshake all the same.
    assert (await first.get())[:2] == b"\x16\x03"


async def test_a_client_certificate_is_read_from_the_files_that_the_environment_names(tmp_path: Path) -> None:
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).write_text(f"the {name}", encoding="utf-8")
    client = await connect(
        lazy=True,
        environment={
            "TEMPORAL_ADDRESS": f"{NAMESPACE}.tmprl.cloud:7233",
            "TEMPORAL_NAMESPACE": NAMESPACE,
            "TEMPORAL_TLS_CLIENT_CERT_PATH": str(tmp_path / "tls.crt"),
            "TEMPORAL_TLS_CLIENT_KEY_PATH": str(tmp_path / "tls.key"),
            "TEMPORAL_TLS_SERVER_CA_CERT_PATH": str(tmp_path / "ca.crt"),
            "TEMPORAL_TLS_SERVER_NAME": "another.example",
        },
    )
    tls = client.service_client.config.tls
    assert isinstance(tls, TLSConfig)
    assert (tls.client_cert, tls.client_private_key) == (b"the tls.crt", b"the tls.key")
    assert (tls.server_root_ca_cert, tls.domain) == (b"the ca.crt", "another.example")


async def test_without_any_of_it_the_connection_is_the_one_of_a_server_at_hand() -> None:
    config = (await connect(lazy=True, environment={})).service_client.config
    assert (config.target_host, config.tls, config.api_key) == ("localhost:7233", None, None)


# A stand-in for Temporal Cloud, as far as it differs: it lets in, and does not let anybody make anything.


@dataclass
class Said:
    """How a call is answered: with a message, or with a status."""

    message: bytes = b""
    status: int = 0


@dataclass
class Refusing:
    """Speaks as much of HTTP/2 as a client of gRPC needs, and answers calls in the order in which they are expected."""

    answers: list[Said] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(24)
            writer.write(_frame(4, 0, 0, b""))
            while True:
                head = await reader.readexactly(9)
                length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
                stream = int.from_bytes(head[5:]) & 0x7FFFFFFF
                payload = await reader.readexactly(length)
                if kind == 4 and not flags & 1:
                    writer.write(_frame(4, 1, 0, b""))
                elif kind == 6 and not flags & 1:
                    writer.write(_frame(6, 1, 0, payload))
                elif kind == 0 and flags & 1:
                    self._answer(writer, stream)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, writer: asyncio.StreamWriter, stream: int) -> None:
        said = self.answers.pop(0) if self.answers else Said(status=RPCStatusCode.PERMISSION_DENIED)
        head = b"\x88" + _header("content-type", "application/grpc")
        if said.status:
            refusal = head + _header("grpc-status", str(int(said.status))) + _header("grpc-message", "not%20allowed")
            writer.write(_frame(1, 5, stream, refusal))
            return
        writer.write(_frame(1, 4, stream, head))
        writer.write(_frame(0, 0, stream, struct.pack(">BI", 0, len(said.message)) + said.message))
        writer.write(_frame(1, 5, stream, _header("grpc-status", "0")))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _header(name: str, value: str) -> bytes:
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


@asynccontextmanager
async def cloud(answers: Sequence[Said]) -> AsyncIterator[str]:
    """The address of a stand-in that gives these answers."""
    stand_in = Refusing(list(answers))
    server = await asyncio.start_server(stand_in.serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


OK = Said()
REFUSED = [RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED]


async def client_at(address: str) -> Client:
    return await connect(environment={"TEMPORAL_ADDRESS": address, "TEMPORAL_NAMESPACE": NAMESPACE})


@pytest.mark.parametrize("status", REFUSED)
async def test_search_attributes_that_cannot_be_registered_here_are_named_with_their_types(
    status: RPCStatusCode,
) -> None:
    present = ListSearchAttributesResponse(
        custom_attributes={"Plan": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD}
    ).SerializeToString()
    # Who one is, the namespace, what is registered; and then no.
    async with cloud([OK, OK, Said(present), Said(status=status)]) as address:
        with pytest.raises(NotOursToMakeError) as refused:
            await set_up_namespace(await client_at(address))
    words = str(refused.value)
    for key in SEARCH_ATTRIBUTES:
        assert (f"{key.name}=" in words) == (key.name != "Plan")
    assert "ReviewReasons=KeywordList" in words
    assert "BonusExpiresAt=Datetime" in words
    assert "Temporal Cloud" in words


@pytest.mark.parametrize("status", REFUSED)
async def test_a_namespace_that_cannot_be_made_here_is_named_with_its_retention(status: RPCStatusCode) -> None:
    async with cloud([OK, Said(status=RPCStatusCode.NOT_FOUND), Said(status=status)]) as address:
        with pytest.raises(NotOursToMakeError, match=rf"namespace {NAMESPACE} is made elsewhere.* 30 days"):
            await set_up_namespace(await client_at(address))


async def test_nothing_is_refused_where_everything_was_made_before() -> None:
    present = ListSearchAttributesResponse(
        custom_attributes={key.name: IndexedValueType.ValueType(key.indexed_value_type) for key in SEARCH_ATTRIBUTES}
    ).SerializeToString()
    async with cloud([OK, OK, Said(present)]) as address:
        assert await set_up_namespace(await client_at(address)) is False


async def test_the_command_says_in_one_line_what_has_to_be_made_elsewhere() -> None:
    async with cloud([OK, OK, OK, Said(status=RPCStatusCode.PERMISSION_DENIED)]) as address:
        operator = Operator({"TEMPORAL_ADDRESS": address, "TEMPORAL_NAMESPACE": NAMESPACE})
        words = await operator.refusal("setup-temporal")
    assert words.startswith(f"the search attributes of namespace {NAMESPACE} are made elsewhere")
    assert len(words.splitlines()) == 1
