"""Traces by OpenTelemetry: a request, the run that it moves, the run's steps, and what each asks of PostgreSQL.

A span leaves the process with nothing but what is on a list here (rule 24): no address that was called, no header, no
parameter of a query, no words of an error. And no trace of a caller's is gone on with: most callers are the public, and
whatever they sent along would come into the histories of runs.

Why so, and not as the plugin of Temporal's SDK has it: docs/decisions/0014-traces.md.
"""

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, Status, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.contrib.opentelemetry import TracingInterceptor
from temporalio.worker import (
    ExecuteWorkflowInput,
    HandleSignalInput,
    HandleUpdateInput,
    StartActivityInput,
    StartChildWorkflowInput,
    StartLocalActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

FOLLOWS = timedelta(minutes=1)
"""A step belongs to the trace of the message that moved its run, if it comes no later than that after it."""

TOLD = frozenset(
    {
        "http.method",
        "http.request.method",
        "http.route",
        "http.status_code",
        "http.response.status_code",
        "db.system",
        "db.system.name",
        "db.statement",
        "db.query.text",
        "db.operation.name",
        "error.type",
        "exception.type",
        "temporalActivityID",
        "temporalRunID",
        "temporalUpdateID",
        "temporalWorkflowID",
    }
)
"""All that a span tells beside its name and its times. A query's text has places for its parameters, never those."""

_NOT_TRACED = "/healthz$,/readyz$,/metrics$,/assets/,/portal/events$"
"""Asked for all the time, or open for hours."""

_LAST_WORDS_SECONDS = 5.0
_TAKEN_UP = "__referrals_taken_up"


class Tracing:
    """What traces one program."""

    def __init__(self, service: str) -> None:
        """Send spans to where the environment says, under the service's name, unless that names another."""
        named = os.environ.get("OTEL_SERVICE_NAME") or f"{SERVICE_NAME}=" in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        self._provider = TracerProvider(resource=Resource.create({} if named else {SERVICE_NAME: service}))
        self._provider.sampler = NoOrphans(self._provider.sampler)
        self._provider.add_span_processor(BatchSpanProcessor(Discreet(OTLPSpanExporter())))
        # The one place from which the instrumentation of requests takes how to go on with a trace.
        propagate.set_global_textmap(NoForeignTraces())
        self._tracer = self._provider.get_tracer("kallyai-referrals")
        self.interceptor = FollowingInterceptor(self._tracer)

    def watch_database(self, *engines: object) -> None:
        """Trace what is asked of PostgreSQL through these engines of SQLAlchemy: all of the program's at once."""
        SQLAlchemyInstrumentor().instrument(
            engines=list(engines),
            tracer_provider=self._provider,
            meter_provider=NoOpMeterProvider(),
            # It names SQLAlchemy before 2.1 alone; the tests hold that it does its work with ours.
            skip_dep_check=True,
        )

    @contextmanager
    def journey(self, statements: Sequence[str]) -> Iterator[None]:
        """One journey to PostgreSQL with several statements, which no engine of SQLAlchemy sees."""
        texts = [" ".join(statement.split()) for statement in statements]
        attributes = {"db.system.name": "postgresql", "db.query.text": "; ".join(texts)}
        with self._tracer.start_as_current_span(
            f"{len(texts)} statements", kind=SpanKind.CLIENT, attributes=attributes, record_exception=False
        ):
            yield

    def watch_app(self, app: Any) -> None:
        """Trace the requests to a FastAPI app, by their routes."""
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self._provider,
            meter_provider=NoOpMeterProvider(),
            excluded_urls=_NOT_TRACED,
            exclude_spans=["receive", "send"],
        )

    async def close(self) -> None:
        """Send what is not sent yet; nobody waits long for that."""
        await asyncio.wait({asyncio.create_task(asyncio.to_thread(self._flush))}, timeout=_LAST_WORDS_SECONDS)

    def _flush(self) -> None:
        self._provider.force_flush(int(_LAST_WORDS_SECONDS * 1000))


class NoForeignTraces(TextMapPropagator):
    """Goes on with nothing that came with a request, and sends nothing along."""

    def extract(
        self,
        carrier: CarrierT,  # noqa: ARG002
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,  # noqa: ARG002
    ) -> Context:
        """Take up nothing."""
        return Context() if context is None else context

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Send nothing."""

    @property
    def fields(self) -> set[str]:
        """Nothing is read or written."""
        return set()


class Discreet(SpanExporter):
    """Lets out of spans what is on the list, and nothing else (rule 24)."""

    def __init__(self, exporter: SpanExporter) -> None:
        """Hand on to `exporter`."""
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export what may be told."""
        return self._exporter.export([_discreet(span) for span in spans])

    def shutdown(self) -> None:
        """Let the exporter end."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Let the exporter send what it has."""
        return self._exporter.force_flush(timeout_millis)


def _discreet(span: ReadableSpan) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_told(span.attributes),
        events=[Event(event.name, _told(event.attributes), event.timestamp) for event in span.events],
        links=[Link(link.context) for link in span.links],
        kind=span.kind,
        # Its words are those of an error.
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _told(attributes: Attributes) -> Attributes:
    return {name: value for name, value in (attributes or {}).items() if name in TOLD}


class NoOrphans(Sampler):
    """Leaves out what belongs to no request and no step: looks at the database, say, that a program takes by itself."""

    def __init__(self, sampler: Sampler) -> None:
        """Leave everything else to `sampler`, which the environment names."""
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide about a span that begins."""
        has_parent = trace.get_current_span(parent_context).get_span_context().is_valid
        if not has_parent and kind is not SpanKind.SERVER:
            return SamplingResult(Decision.DROP)
        return self._sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """What it is, and what decides."""
        return f"NoOrphans({self._sampler.get_description()})"


class FollowingInterceptor(TracingInterceptor):
    """Traces calls to Temporal and steps as the SDK does, and lets a run's steps follow whoever moved the run.

    A run may live for months, and is moved by one message after the other: each is a trace of its own, from the request
    that brought the message through to what the run did about it. Nothing of it decides about commands, so that
    histories replay alike with and without.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        """Make spans with `tracer`."""
        super().__init__(tracer)
        # Nothing else is handed on: what callers name their baggage would be kept in histories (rule 24).
        self.text_map_propagator = TraceContextTextMapPropagator()

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[Any]:  # noqa: A002
        """What goes with the run itself: it hands headers on, and has the span made outside."""
        input.unsafe_extern_functions[_TAKEN_UP] = self._taken_up
        return _Following

    def _taken_up(self, header: Payload, name: str, attributes: Mapping[str, str]) -> Payload:
        """Note that a run took up a message; gives what its steps go on from."""
        carrier: dict[str, str] = self.payload_converter.from_payload(header)
        context = self.text_map_propagator.extract(carrier)
        at = time.time_ns()
        span = self.tracer.start_span(name, context, SpanKind.SERVER, attributes, start_time=at)
        span.end(at)
        onward: dict[str, str] = {}
        self.text_map_propagator.inject(onward, trace.set_span_in_context(span, context))
        return self.payload_converter.to_payload(onward) if onward else header


class _Following(WorkflowInboundInterceptor):
    """Remembers whose message moved the run last."""

    _HEADER = "_tracer-data"

    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        self._header: Payload | None = None
        self._at = workflow.now()
        super().init(_Leading(outbound, self))

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        # One that slept since a click follows the signup that woke it.
        if self._header is None and workflow.now() - workflow.info().workflow_start_time < FOLLOWS:
            self._follow(input.headers, f"RunWorkflow:{workflow.info().workflow_type}")
        return await super().execute_workflow(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:  # noqa: A002
        self._follow(input.headers, f"HandleSignal:{input.signal}")
        await super().handle_signal(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:  # noqa: A002
        self._follow(input.headers, f"HandleUpdate:{input.update}")
        return await super().handle_update_handler(input)

    def headed(self, headers: Mapping[str, Payload]) -> Mapping[str, Payload]:
        """The headers of a step, with whom it follows."""
        if self._header is None or workflow.now() - self._at >= FOLLOWS:
            return headers
        return {**headers, self._HEADER: self._header}

    def _follow(self, headers: Mapping[str, Payload], name: str) -> None:
        self._header, self._at = headers.get(self._HEADER), workflow.now()
        if self._header is None or workflow.unsafe.is_replaying():
            return
        info = workflow.info()
        attributes = {"temporalWorkflowID": info.workflow_id, "temporalRunID": info.run_id}
        self._header = workflow.extern_functions()[_TAKEN_UP](self._header, name, attributes)


class _Leading(WorkflowOutboundInterceptor):
    """Sends a run's steps after the message that moved it."""

    def __init__(self, next: WorkflowOutboundInterceptor, run: _Following) -> None:  # noqa: A002
        super().__init__(next)
        self._run = run

    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        input.headers = self._run.headed(input.headers)
        return super().start_activity(input)

    def start_local_activity(self, input: StartLocalActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        input.headers = self._run.headed(input.headers)
        return super().start_local_activity(input)

    async def start_child_workflow(self, input: StartChildWorkflowInput) -> workflow.ChildWorkflowHandle[Any, Any]:  # noqa: A002
        input.headers = self._run.headed(input.headers)
        return await super().start_child_workflow(input)
