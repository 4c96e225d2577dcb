"""A function of ``delivery.v1.Recorder`` that runs in a thread: it calls another method for each event."""

from __future__ import annotations

from delivery.v1 import delivery_pb2 as pb
from delivery.v1 import delivery_pb2_grpc
from google.protobuf.empty_pb2 import Empty

from mesh import Context


def on_happened(request: pb.Happened, context: Context) -> Empty:
    context.log.warning("called for %s %d", request.key, request.number)
    answer: Empty = context.stub(delivery_pb2_grpc.RecorderStub).OnNoted(pb.Noted(number=request.number))
    return answer


def on_noted(request: pb.Noted, context: Context) -> Empty:
    return Empty()
