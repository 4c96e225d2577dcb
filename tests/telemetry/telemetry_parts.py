"""What the telemetry tests share: real collectors (OTLP over HTTP and gRPC), and calls as the layers see them."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mesh.call import Call, Metadata


class Spans:
    """What a collector received."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []

    def all(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def one(self, name: str) -> Span:
        [found] = [span for span in self.all() if span.name == name]
        return found


class HttpCollector(Spans):
    """OTLP/HTTP; ``answer`` is its status, or 0 to accept and never answer, ``delay`` how long it takes."""

    def __init__(self, port: int = 0) -> None:
        super().__init__()
        self.answer = 200
        self.delay = 0.0
        self.asked = threading.Event()
        self.release = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.asked.set()
                if collector.answer == 0:
                    collector.release.wait(60)
                    return
                collector.release.wait(collector.delay)
                if collector.answer == 200:
                    if self.headers.get("content-encoding") == "gzip":
                        body = gzip.decompress(body)
                    collector.headers.append({key.lower(): value for key, value in self.headers.items()})
                    collector.paths.append(self.path)
                    if self.path == "/v1/metrics":
                        collector.metrics.append(ExportMetricsServiceRequest.FromString(body))
                    else:
                        collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.answer)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class GrpcCollector(Spans, trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP/gRPC on a stock grpcio server."""

    def __init__(self) -> None:
        super().__init__()
        self.server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.url = f"http://127.0.0.1:{port}"
        self.server.start()

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:  # noqa: N802
        self.requests.append(request)
        self.headers.append(dict(context.invocation_metadata()))
        return ExportTraceServiceResponse()

    def stop(self) -> None:
        self.server.stop(0).wait()


class FakeMethod:
    """As much of a method as the layers read."""

    def __init__(self, path: str = "/registration.v1.Registration/Register") -> None:
        self.path = path


METHOD = FakeMethod()


def call_of(*pairs: tuple[bytes, bytes], method: Any = METHOD) -> Call:
    return Call(method, Metadata.from_wire(list(pairs)))


class Request(Call):
    """The edge's call, as the http layer sees it."""

    def __init__(self, *pairs: tuple[bytes, bytes], verb: str = "GET", path: str = "/v1/users/7") -> None:
        super().__init__(None, Metadata.from_wire(list(pairs)))
        self.verb = verb
        self.path = path
        self.scheme = "http"
        self.authority = "api.example.org:8080"
        self.client = "192.0.2.7:50123"
        self.status = 0
        self.route: str | None = None
        self.http_version = "2"


def value(attribute: Any) -> Any:
    kind = attribute.WhichOneof("value")
    return getattr(attribute, kind)


def attributes(item: Any) -> dict[str, Any]:
    return {pair.key: value(pair.value) for pair in item.attributes}
