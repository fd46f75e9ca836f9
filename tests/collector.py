"""A stand-in for an OpenTelemetry collector: takes spans over HTTP as specified, and keeps every byte."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan


@dataclass(frozen=True)
class Span:
    """A span as it was sent, and which program sent it."""

    service: str
    sent: SentSpan

    @property
    def name(self) -> str:
        return self.sent.name

    @property
    def attributes(self) -> dict[str, str]:
        return {each.key: each.value.string_value or str(each.value.int_value) for each in self.sent.attributes}


class Collector:
    """What was sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.url = ""

    @property
    def spans(self) -> list[Span]:
        found: list[Span] = []
        for body in list(self.bodies):
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                [service] = [
                    each.value.string_value for each in group.resource.attributes if each.key == "service.name"
                ]
                found += [Span(service, span) for scope in group.scope_spans for span in scope.spans]
        return found

    def named(self, name: str) -> list[Span]:
        """The spans of that name."""
        return [span for span in self.spans if span.name == name]

    def lineage(self, span: Span) -> list[str]:
        """The names of a span and of all above it, up to the one that began the trace."""
        known = {each.sent.span_id: each for each in self.spans if each.sent.trace_id == span.sent.trace_id}
        names = [span.name]
        while span.sent.parent_span_id:
            span = known[span.sent.parent_span_id]
            names.append(span.name)
        return names


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            assert self.headers["content-type"] == "application/x-protobuf"
            collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
