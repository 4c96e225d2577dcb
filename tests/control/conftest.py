"""Real things for the commands to work on: a stock gRPC server with reflection."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc as pb_grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection


class Echo(pb_grpc.EchoServicer):
    """As much of the conformance service as a command needs to be tried on."""

    def Unary(self, request: Any, context: Any) -> Any:  # noqa: N802 - generated code calls it so
        for key, value in context.invocation_metadata():
            if key.startswith("x-echo-"):
                context.send_initial_metadata(((key, value),))
            if key == "authorization":
                context.set_trailing_metadata((("x-user", value),))
        if request.HasField("fail"):
            status = status_pb2.Status(code=request.fail.code, message=request.fail.message)
            violation = error_details_pb2.BadRequest.FieldViolation(field="text", description="must be shorter")
            status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, request.fail.message)
        return pb.EchoResponse(text=request.text, payload=request.payload)

    def ServerStream(self, request: Any, context: Any) -> Any:  # noqa: N802 - as above
        for index in range(request.count):
            yield pb.EchoResponse(text=request.text, index=index)
        if request.HasField("fail"):
            context.abort(grpc.StatusCode.NOT_FOUND, request.fail.message)

    def ClientStream(self, requests: Any, context: Any) -> Any:  # noqa: ARG002, N802 - as above
        texts = [request.text for request in requests]
        return pb.EchoResponse(text=",".join(texts), index=len(texts))

    def Bidi(self, requests: Any, context: Any) -> Any:  # noqa: ARG002, N802 - as above
        for index, request in enumerate(requests):
            yield pb.EchoResponse(text=request.text, index=index)


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a stock server with reflection (v1alpha) and health."""
    made = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_EchoServicer_to_server(Echo(), made)
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, made)
    reflection.enable_server_reflection(["conformance.v1.Echo", "grpc.health.v1.Health", reflection.SERVICE_NAME], made)
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    yield f"127.0.0.1:{port}"
    made.stop(0).wait()
