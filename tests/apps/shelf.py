"""The functions of rules.v1.Shelf and StrictShelf."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from google.protobuf.empty_pb2 import Empty
from rules.v1 import rules_pb2 as pb

from mesh import Context


async def add(request: pb.AddRequest, context: Context) -> pb.Book:
    return request.book


async def add_strictly(request: pb.AddRequest, context: Context) -> pb.Book:
    return request.book


def update(request: pb.UpdateRequest, context: Context) -> pb.Book:
    return request.book


async def add_all(requests: AsyncIterator[pb.AddRequest], context: Context) -> pb.Added:
    return pb.Added(count=len([request async for request in requests]))


async def watch(request: pb.AddRequest, context: Context) -> AsyncIterator[pb.Book]:
    yield request.book


def exchange(requests: Iterator[pb.AddRequest], context: Context) -> Iterator[pb.Book]:
    for request in requests:
        yield request.book


async def divide(request: pb.Ratio, context: Context) -> Empty:
    return Empty()


async def on_put(request: pb.Put, context: Context) -> Empty:
    return Empty()
