"""Uses of generated stubs that type checkers accept and that work: this module is checked, and runs."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from odd.v1 import odd_pb2, old_pb2, shared_pb2
from odd.v1.odd_pb2_grpc import NoneFunctions, OddBlockingStub, OddFunctions, OddStub

from mesh import Context

rest: dict[str, Any] = {"from": "5"}
names = odd_pb2.Names(
    int="1", str=2, property=[3], bytes=b"4", bool=True, self="7", ListFields="8", Names={"int": "9"},
    Timestamp=odd_pb2.Names.Stamp(str="10"), at=datetime.now(UTC), Mapping={"a": {"str": 12}}, any="ONE",
    Literal=["ZERO", odd_pb2.Names.ONE], float="15", maybe=None, duration=timedelta(seconds=1), struct={"a": 1},
    values=[1, "a"], times=[datetime.now(UTC)], by_number={1: odd_pb2.Names.ONE}, **rest,
)  # fmt: skip
assert_type(names.int, str)
assert_type(names.str, int)
assert_type(names.any, odd_pb2.Names.Any)
assert_type(names.Names.Names.Timestamp, odd_pb2.Names.Stamp)
assert_type(names.by_number[1], odd_pb2.Names.Any)
assert_type(odd_pb2.Names.Any.Value("ONE"), odd_pb2.Names.Any)
assert_type(odd_pb2.Names.Any.Name(names.any), str)
names.at = datetime.now(UTC)
names.duration = timedelta(seconds=2)
names.struct = {"b": 2}
names.values = [2]
names.at.GetCurrentTime()
names.property.append(1)
names.Names.bytes = b""
names.Mapping["b"].str = 1
if names.HasField("maybe") or names.HasField("choice") or names.WhichOneof("choice") == "list":
    names.ClearField("property")
old = old_pb2.Old(name="a")
old.Extensions[old_pb2.note] = "b"
old.part.number = 1
assert_type(old.Extensions[old_pb2.note], str)
assert_type(odd_pb2.Shared().text, str)
assert_type(shared_pb2.RED, shared_pb2.Colour)
assert odd_pb2.RED == shared_pb2.Colour.RED
print(NoneFunctions)


async def call(context: Context, requests: AsyncIterator[odd_pb2.Names]) -> None:
    stub = context.stub(OddStub)
    assert_type(await stub.Once(names, timeout=1, metadata=[("a", "b")]), shared_pb2.Shared)
    async for response in stub.Watch(names):
        assert_type(response, shared_pb2.Shared)
    assert_type(await stub.Collect(requests), shared_pb2.Shared)
    talk = stub.Talk()
    await talk.write(names)
    await talk.done_writing()
    assert [response.text async for response in talk]
    once = stub.Once(names)
    assert_type(await once, shared_pb2.Shared)
    assert_type(await once.details(), str)
    await stub.lambda_(names)


def call_blocking(context: Context, requests: Iterator[odd_pb2.Names]) -> None:
    stub = context.stub(OddBlockingStub)
    assert_type(stub.Once(names), shared_pb2.Shared)
    response, finished = stub.Collect.with_call(requests)
    assert_type(response, shared_pb2.Shared)
    assert_type(finished.details(), str)
    for each in stub.Talk(iter([names])):
        assert_type(each, shared_pb2.Shared)


class Asynchronous:
    """Functions of ``Odd``, as methods of an object: a protocol takes any object."""

    async def once(self, request: odd_pb2.Names, context: Context) -> shared_pb2.Shared:
        return shared_pb2.Shared(text=request.int)

    async def watch(self, request: odd_pb2.Names, context: Context) -> AsyncIterator[shared_pb2.Shared]:
        yield await self.once(request, context)

    async def collect(self, requests: AsyncIterator[odd_pb2.Names], context: Context) -> shared_pb2.Shared:
        return shared_pb2.Shared(text="".join([request.int async for request in requests]))

    async def talk(self, requests: AsyncIterator[odd_pb2.Names], context: Context) -> AsyncIterator[shared_pb2.Shared]:
        async for request in requests:
            yield await self.once(request, context)

    def lambda_(self, request: odd_pb2.Names, context: Context) -> shared_pb2.Shared:
        return shared_pb2.Shared(text=request.int)

    GetURL = GetUrl = lambda_


class Blocking(Asynchronous):
    """The same as ``def`` functions."""

    def collect(  # type: ignore[override]
        self, requests: Iterator[odd_pb2.Names], context: Context
    ) -> shared_pb2.Shared:
        return shared_pb2.Shared(text="".join(request.int for request in requests))


asynchronous: OddFunctions = Asynchronous()
blocking: OddFunctions = Blocking()
