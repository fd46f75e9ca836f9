"""Traces: from a request through the run that it moves to the queries of its steps, and nothing personal in them."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Replayer

from program.referral import Stage
from runtime.settings import PROJECT, SettingsError
from runtime.spans import Discreet, FollowingInterceptor, NoOrphans
from runtime.tracing import wanted
from tests.collector import Collector, Span, collecting
from tests.conftest import free_port
from tests.http_support import API_KEYS, environment, paid, person
from tests.support import DatabaseUrls, World, until
from tests.test_end_to_end import STARTER, WORKER, Program, Stack
from tests.test_replay import every_recorded_run, read
from workflows.client import ReferralRuns
from workflows.payloads import DATA_CONVERTER
from workflows.referral import ReferralWorkflow
from workflows.registry import workflow_runner

DAY = timedelta(days=1)


@pytest.fixture
async def traced(
    live_idle_world: World, database_urls: DatabaseUrls, dev_server: str, tmp_path: Path
) -> AsyncIterator[tuple[Stack, Collector]]:
    """Both programs as processes, which send their spans to a collector."""
    port = free_port()
    settings = environment(database_urls, live_idle_world.task_queue, dev_server, port)
    with collecting() as collector:
        settings |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "TEMPORAL_CONFIG_FILE": os.devnull}
        starter = Program(STARTER, settings, tmp_path / "starter.log")
        worker = Program(WORKER, settings, tmp_path / "worker.log")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            stack = Stack(client, live_idle_world, starter, worker)
            try:
                starter.start()
                worker.start()
                await _ready(stack)
                yield stack, collector
            finally:
                starter.kill()
                worker.kill()


async def _ready(stack: Stack) -> None:
    async def look() -> bool:
        stack.starter.assert_running()
        stack.worker.assert_running()
        try:
            fine = (await stack.send("GET", "/healthz")).status_code == 200
        except httpx.TransportError:
            return False
        return fine and any('"worker started"' in line for line in stack.worker.lines)

    await until(look, bool, 60)


async def test_rule_24_one_trace_leads_from_a_webhook_to_the_credit_s_queries_and_tells_nothing_personal(
    traced: tuple[Stack, Collector],
) -> None:
    stack, collector = traced
    rita = await stack.account(person("rita", created_at=datetime.now(UTC) - 400 * DAY), first_name="Margherita")
    for event in paid(rita, datetime.now(UTC) - DAY, datetime.now(UTC) + 20 * DAY):
        await stack.stripe(event)
    code = await stack.link(rita)
    # Whoever follows a link can send whatever they like along.
    sent_along = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "mail=rita.sent.along",
        "baggage": "email=rita.sent.along",
    }
    visit = await stack.click(code, headers=sent_along, channel="whatsapp")
    fred = person("fred")
    await stack.signed_up(fred, referral_token=visit.token, client_ip="203.0.113.7", user_agent="Fred's browser")
    await stack.account(fred)
    await stack.reaches(visit.referral_id, Stage.SIGNED_UP)
    refused = await stack.send("POST", "/stripe/webhooks", content=b"{}", headers={"stripe-signature": "t=1,v1=ab"})
    assert refused.status_code == 400
    for event in paid(fred, datetime.now(UTC), datetime.now(UTC) + 30 * DAY):
        assert (await stack.stripe(event)).status_code == 200
    await stack.reaches(visit.referral_id, Stage.CREDITED)
    history = await stack.world.handle(visit.referral_id).fetch_history()
    stack.starter.stop()
    stack.worker.stop()

    # One trace: a query that credits, the step, the run, the signal, the request of Stripe's.
    credit = next(span for span in collector.named("RunActivity:credit_both"))
    inserted = [span for span in _below(collector, credit) if "INSERT INTO grant_lot" in _text(span)]
    # Both sides' bonuses are one statement; it is sent with others, which are one span.
    assert len(inserted) == 1
    assert collector.lineage(inserted[0])[1:] == [
        "RunActivity:credit_both",
        "HandleSignal:payment",
        "SignalWorkflow:payment",
        "POST /stripe/webhooks",
    ]
    assert {span.service for span in _of_one_trace(collector, credit)} == {
        "kallyai-referrals-starter",
        "kallyai-referrals-worker",
    }
    # Another one: from the click nothing is woken, and the signup brings the attribution.
    [click] = collector.named("GET /r/{code}")
    assert [span.name for span in _of_one_trace(collector, click) if span.name.startswith("StartWorkflow")]
    assert click.sent.trace_id.hex() != "0af7651916cd43dd8448eb211c80319c", "a caller's trace is not gone on with"
    attributed = collector.lineage(collector.named("RunActivity:attribute_signup")[0])
    assert attributed[-2:] == ["SignalWithStartWorkflow:ReferralWorkflow", "POST /v1/signups"]
    assert not collector.named("GET /healthz")
    assert all(span.sent.parent_span_id or span.sent.kind == 2 for span in collector.spans), "a query of nobody's"

    exported = b"".join(collector.bodies)
    for personal in (
        *(fred.email, rita.email, "Margherita", "203.0.113.7", "127.0.0.1", "Fred's browser", "iPhone"),
        *(fred.account_id, rita.account_id, code, visit.token, "kally_ref", "sent.along", "whatsapp"),
        *(API_KEYS[0], "Bearer", "httpx", fred.customer_id),
    ):
        assert personal.encode() not in exported, personal
    kept = history.to_json()
    assert "sent.along" not in kept

    headers = [
        attributes.header.ByteSize()
        for event in history.events
        if (attributes := getattr(event, event.WhichOneof("attributes") or "")) is not None
        and hasattr(attributes, "header")
        and attributes.header.fields
    ]
    print(f"headers of traces in the history: {headers} bytes, of {len(history.events)} events")
    assert headers
    assert max(headers) <= 160
    # A run that was traced goes on with and without.
    recorder = Recorder()
    for interceptors in ([], [recorder.interceptor]):
        await _replay(history, interceptors)
    assert recorder.exporter.get_finished_spans() == (), "what happened once is told once"


def _text(span: Span) -> str:
    return span.attributes.get("db.statement", "") + span.attributes.get("db.query.text", "")


def _of_one_trace(collector: Collector, span: Span) -> list[Span]:
    return [each for each in collector.spans if each.sent.trace_id == span.sent.trace_id]


def _below(collector: Collector, span: Span) -> list[Span]:
    return [each for each in collector.spans if each.sent.parent_span_id == span.sent.span_id]


async def _replay(history: WorkflowHistory, interceptors: list[FollowingInterceptor]) -> None:
    replayer = Replayer(
        workflows=[ReferralWorkflow],
        data_converter=DATA_CONVERTER,
        workflow_runner=workflow_runner(),
        interceptors=interceptors,
    )
    await replayer.replay_workflow(history)


class Recorder:
    """Makes spans and keeps them, as they would leave the process."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.sampler = NoOrphans(provider.sampler)
        provider.add_span_processor(SimpleSpanProcessor(Discreet(self.exporter)))
        self.tracer = provider.get_tracer("tests")
        self.interceptor = FollowingInterceptor(self.tracer)

    def traces(self, name: str) -> set[int]:
        """The traces in which there is a span of that name."""
        return {
            span.context.trace_id for span in self.exporter.get_finished_spans() if span.name == name and span.context
        }


@every_recorded_run
async def test_recorded_histories_replay_alike_with_traces_on(file: Path) -> None:
    recorder = Recorder()
    history = read(file)
    await _replay(history, [recorder.interceptor])
    assert recorder.exporter.get_finished_spans() == ()


async def test_a_step_that_time_brings_belongs_to_no_message_of_long_ago(idle_world: World) -> None:
    recorder, world = Recorder(), idle_world
    config = world.environment.client.config()
    config["interceptors"] = [recorder.interceptor]
    world.runs = ReferralRuns(Client(**config), world.task_queue, timeout=timedelta(seconds=10))
    world.messenger._runs = world.runs
    async with world.worker(recorder.interceptor):
        referral_id, _, friend = await world.waiting_friend()
        with recorder.tracer.start_as_current_span("payment", kind=SpanKind.SERVER):
            await world.pay(friend)
        await world.reaches(referral_id, Stage.CREDITED)
        await world.outcome(referral_id)
    payment = recorder.traces("payment")
    assert recorder.traces("RunActivity:credit_both") == recorder.traces("HandleSignal:payment") == payment
    assert len(recorder.traces("RunActivity:expire_bonuses") - payment) >= 1
    assert not recorder.traces("RunActivity:expire_bonuses") & payment


async def test_rule_24_the_words_of_an_error_stay_here() -> None:
    recorder = Recorder()
    with (
        pytest.raises(ValueError, match="rita"),
        recorder.tracer.start_as_current_span(
            "step", kind=SpanKind.SERVER, attributes={"http.target": "/r/code?c=rita", "http.route": "/r/{code}"}
        ),
    ):
        raise ValueError("rita@example.com")
    [span] = recorder.exporter.get_finished_spans()
    assert "rita" not in span.to_json()
    assert dict(span.attributes or {}) == {"http.route": "/r/{code}"}
    assert [dict(event.attributes or {}) for event in span.events] == [{"exception.type": "ValueError"}]
    assert not span.status.is_ok


def test_what_nobody_asked_for_is_no_trace() -> None:
    recorder = Recorder()
    with recorder.tracer.start_as_current_span("SELECT referrals", kind=SpanKind.CLIENT):
        pass
    assert recorder.exporter.get_finished_spans() == ()


def test_nothing_of_it_is_loaded_unless_it_is_wanted() -> None:
    script = """import sys, worker, starter.__main__
from runtime.tracing import tracing
assert tracing("worker", {}) is None
heavy = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.instrumentation", "temporalio.contrib.open")
print(sorted(name for name in sys.modules if name.startswith(heavy)))"""
    answer = subprocess.run(  # noqa: S603
        [sys.executable, "-c", script], cwd=PROJECT, env={"PATH": ""}, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("settings", "on"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
    ],
)
def test_an_address_turns_traces_on(settings: dict[str, str], on: bool) -> None:
    assert wanted(settings) is on


@pytest.mark.parametrize(
    "settings", [{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {"OTEL_TRACES_EXPORTER": "zipkin"}], ids=["grpc", "zipkin"]
)
def test_a_way_that_is_not_spoken_is_an_error(settings: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=next(iter(settings))):
        wanted(ENDPOINT | settings)
