"""Functions of endings.v1.Steps: ``def``, so they run in threads."""

from __future__ import annotations

from collections.abc import Iterator

from endings.v1 import endings_pb2 as pb
from google.protobuf.empty_pb2 import Empty

from mesh import Context
from mesh.chaos.endings import choice, ways


def walk(request: pb.MakeRequest, context: Context) -> Iterator[pb.Made]:
    """Answer twice, and end as the word says in between, or while the generator is closed."""
    way = choice.of_call(request.word)
    try:
        yield pb.Made(word=request.word)
        if way is not None and not way.late:
            ways.end(way.name)
        yield pb.Made(word=request.word)
    finally:
        if way is not None:
            ways.end(way.name)


def join(requests: Iterator[pb.MakeRequest], context: Context) -> pb.Made:
    """Take what there is."""
    return pb.Made(word=",".join(request.word for request in requests))


def on_made(request: pb.Made, context: Context) -> Empty:
    """End as the word says."""
    way = choice.of_attempt(context, "OnMade", str(context.metadata["ce-id"]), request.word)
    if way is not None:
        ways.end(way.name)
    return Empty()
