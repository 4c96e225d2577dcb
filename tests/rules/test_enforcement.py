"""Rules are enforced before the function runs: calls, streams, deliveries, in the sidecar and in workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from hosting import open_layer, pool_of
from opentelemetry.trace import INVALID_SPAN
from rules.v1 import rules_pb2 as pb
from rules.v1 import rules_pb2_grpc

import mesh
from mesh.contract.model import Contract
from mesh.events.publish.publisher import Publications
from mesh.function import Functions
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.rules.message_checks import request_check
from mesh.sidecar import ServiceContext, Sidecar

SHELF, STRICT = "rules.v1.Shelf", "rules.v1.StrictShelf"


@asynccontextmanager
async def shelf(contract: Contract, *, workers: bool = False) -> AsyncIterator[grpc.aio.Channel]:
    functions: Any = Functions("apps.shelf", [contract.services[SHELF], contract.services[STRICT]])
    if workers:
        functions = pool_of(contract, "apps.shelf", serves=SHELF, preload=("rules.v1.rules_pb2_grpc",), max=1)
    layers = dict.fromkeys(("trace", "authenticate", "authorize"), open_layer)
    limit = ConcurrencyLimit(1000, 1000)
    service = ServiceContext("shelf", channel=None, blocking=None)
    serves = [SHELF] if workers else [SHELF, STRICT]
    sidecar = Sidecar(contract, serves, functions, service, **layers, concurrency_limit=limit, drain=0.0)
    address = await sidecar.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel
    finally:
        await sidecar.stop()


def violations(error: grpc.aio.AioRpcError) -> list[tuple[str, str, str]]:
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    detail = BadRequest()
    assert status.details[0].Unpack(detail)
    return [(one.field, one.reason, one.description) for one in detail.field_violations]


BAD = pb.AddRequest(book=pb.Book(title="x", authors=[{"name": "Ada"}, {"email": "nobody"}]))
EXPECTED = [
    ("book.authors[1].name", "required", "value is required"),
    ("book.title", "string.min_len", "must be at least 2 characters"),
    ("book.title", "string.pattern", "does not match regex pattern `^[A-Z]`"),
    ("book.authors[1].email", "string.email", "must be a valid email address"),
]
GOOD = pb.AddRequest(book=pb.Book(title="Emma", authors=[{"name": "Jane", "email": "jane@austen.example"}]))


@pytest.mark.parametrize("workers", [False, True], ids=["sidecar", "workers"])
async def test_a_call(contract: Contract, *, workers: bool) -> None:
    async with shelf(contract, workers=workers) as channel:
        stub = rules_pb2_grpc.ShelfStub(channel)
        assert await stub.Add(GOOD) == GOOD.book
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Add(BAD)
    assert violations(caught.value) == EXPECTED
    assert caught.value.details() == (
        "book.authors[1].name: value is required (required); book.title: must be at least 2 characters "
        "(string.min_len); book.title: does not match regex pattern `^[A-Z]` (string.pattern); and 1 more"
    )


async def test_each_message_of_a_stream(contract: Contract) -> None:
    async with shelf(contract) as channel:
        stub = rules_pb2_grpc.ShelfStub(channel)
        assert (await stub.AddAll(iter([GOOD, GOOD]))).count == 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.AddAll(iter([GOOD, BAD]))
        assert violations(caught.value) == EXPECTED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Watch(BAD).read()
        assert violations(caught.value) == EXPECTED
        responses = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in stub.Exchange(iter([GOOD, BAD, GOOD])):
                responses.append(response)  # noqa: PERF401 - those before the error count
        assert violations(caught.value) == EXPECTED
        assert responses == [GOOD.book]


async def test_output_only_fields_are_cleared(contract: Contract) -> None:
    sent = pb.AddRequest(book=pb.Book(id="mine", title="Emma", authors=[{"name": "Jane", "books": 6}]))
    async with shelf(contract) as channel:
        received = await rules_pb2_grpc.ShelfStub(channel).Add(sent)
    assert received == pb.Book(title="Emma", authors=[{"name": "Jane"}])


async def test_output_only_fields_are_refused_by_choice(contract: Contract) -> None:
    sent = pb.AddRequest(book=pb.Book(id="mine", title="Emma", authors=[{"name": "Jane", "books": 6}]))
    async with shelf(contract) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rules_pb2_grpc.StrictShelfStub(channel).AddStrictly(sent)
    text = "is set by the service; leave it out"
    assert violations(caught.value) == [
        ("book.id", "output_only", text), ("book.authors[0].books", "output_only", text)
    ]  # fmt: skip


async def test_a_path_sets_an_output_only_field_and_a_mask_says_what_is_required(contract: Contract) -> None:
    async with shelf(contract) as channel:
        stub = rules_pb2_grpc.ShelfStub(channel)
        sent = pb.UpdateRequest(book=pb.Book(id="mine", authors=[{"name": "Jane", "books": 6}]))
        sent.update_mask.paths.append("authors")
        assert await stub.Update(sent) == pb.Book(id="mine", authors=[{"name": "Jane"}])
        sent.update_mask.paths.append("title")
        sent.book.authors.add()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Update(sent)
    assert [one[:2] for one in violations(caught.value)] == [
        ("book.title", "required"), ("book.authors[1].name", "required")
    ]  # fmt: skip


async def test_a_rule_that_fails_is_a_bug_of_the_contract(contract: Contract) -> None:
    async with shelf(contract) as channel:
        stub = rules_pb2_grpc.ShelfStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Divide(pb.Ratio(divisor=3))
        assert violations(caught.value) == [("divisor", "ratio", "must divide 10")]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Divide(pb.Ratio(divisor=0))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")


async def test_many_violations_fit_into_the_trailers(contract: Contract) -> None:
    authors = [{"name": "x", "email": "nobody"}] * 3000
    sent = pb.AddRequest(book=pb.Book(title="Emma", authors=authors[:1000]))
    large = pb.AddRequest(book=pb.Book(title="Emma", authors=[{"name": "x" * 30, "email": "nobody"}] * 3000))
    async with shelf(contract) as channel:
        stub = rules_pb2_grpc.ShelfStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Add(sent)
        assert len(violations(caught.value)) > 10
        assert caught.value.details().endswith("; and 998 more")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Add(large)
        assert len(violations(caught.value)) == 1


def test_a_method_without_rules_has_no_check(contract: Contract) -> None:
    methods = contract.services["conformance.v1.Echo"].methods.values()
    assert [request_check(method) for method in methods] == [None] * len(methods)


@pytest.mark.parametrize(
    ("event", "found"),
    [
        (pb.Put(shelf="a", number=3, title="Emma"), []),
        (pb.Put(shelf="", title="Emma"), [("shelf", "string.min_len")]),
        (pb.Put(shelf="a", number=-1), [("title", "required"), ("number", "int32.gte")]),
    ],
)
def test_an_event_is_checked_where_it_is_published(
    contract: Contract, event: pb.Put, found: list[tuple[str, str]]
) -> None:
    publications = Publications(contract, [SHELF], "shelf")
    if not found:
        assert publications.event(event, INVALID_SPAN).data == event.SerializeToString()
        return
    with pytest.raises(mesh.InvalidArgument, match=r"^INVALID_ARGUMENT: rules\.v1\.Put was not published: ") as caught:
        publications.event(event, INVALID_SPAN)
    assert [(one.field, one.reason) for one in caught.value.details[0].field_violations] == found


def test_of_very_many_violations_the_rest_is_not_counted():
    request = pb.AddRequest(book=pb.Book(title="Emma", authors=[{}] * 100_000))
    with pytest.raises(mesh.InvalidArgument) as caught:
        mesh.validate(request)
    assert "book.authors[2].name: value is required (required); and at least 9998 more" in caught.value.message
