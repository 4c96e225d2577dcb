"""Context, stubs, traces and logs of functions in the sidecar's process and in a worker: one suite for both."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import ECHO, hosted, pool_of, working
from telemetry_parts import HttpCollector

from mesh.call import Call, Handler, Identity, chain
from mesh.contract.model import Contract
from mesh.database import Database
from mesh.rpc.client.blocking_channel import BlockingChannel
from mesh.rpc.client.channel import Channel
from mesh.rpc.client.target import Target
from mesh.sidecar import ServiceContext
from mesh.telemetry import Telemetry, configure

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES = ["here", "worker", "main thread"]
ADA = Identity("ada", frozenset({"admin", "user"}), {"sub": "ada", "nested": {"list": [1, 2.5, None]}})
ODD = Identity("bea", frozenset(), {"large": 2**70, "half": "\ud800"})
"""Identity whose claims are valid in JSON and not in msgpack."""


class Inside:
    """A running service, its telemetry, and the onward calls that it has made."""

    def __init__(self, stub: Any, telemetry: Telemetry, collector: HttpCollector, onward: list[Call]) -> None:
        self.stub = stub
        self.onward = onward
        self._telemetry = telemetry
        self._collector = collector

    def collected(self) -> list[Any]:
        """Return the spans that the collector has."""
        return self._collector.all()

    async def forget(self) -> None:
        """Forget the spans and onward calls until now."""
        await asyncio.to_thread(self._telemetry.flush)
        self._collector.requests.clear()
        self.onward.clear()

    async def spans(self) -> dict[str, Any]:
        """Name → span, as a collector sees them."""
        await asyncio.to_thread(self._telemetry.flush)
        return {span.name: span for span in self._collector.all()}


def attributes(of: Any) -> dict[str, Any]:
    return {pair.key: pair.value for pair in of.attributes}


async def identified(call: Call, next: Handler) -> None:
    call.identity = ODD if call.metadata.wire(b"x-key") == b"odd" else ADA
    call.caller = "friend"
    await next(call)


@asynccontextmanager
async def running(place: str, contract: Contract, tmp_path: Path) -> AsyncIterator[Inside]:
    """Host ``apps.inside``, with all that it uses: in this process (``here``), in a ``worker``, or in one whose ``main
    thread`` is for ``def`` functions.
    """
    collector = HttpCollector()
    telemetry = configure("echo", version="1", default_endpoint=collector.url)
    url = f"sqlite:///{tmp_path}/rows.db"
    versions = tmp_path / "versions"
    versions.mkdir()
    (versions / "v1.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\nrevision = '1'\ndown_revision = None\n"
        "def upgrade():\n    op.create_table('rows', sa.Column('value', sa.Text))\n"
    )
    database = Database(url, migrations=versions, name="echo")
    await database.start()
    seen: list[Call] = []
    sys.modules.pop("apps.inside", None)  # it is imported anew, so that each service is the only one it has started

    async def note(call: Call, next: Handler) -> None:
        seen.append(call)
        await next(call)

    settings = {"sides": 6}
    layers = {"trace": telemetry.inbound, "authenticate": identified}
    async with hosted(contract, "apps.echo") as behind:
        target = Target([behind])
        onward = chain(telemetry.outbound, note, target)
        if place == "here":
            channel = Channel(onward, contract)
            service = ServiceContext(
                "echo", channel=channel, blocking=BlockingChannel(channel, asyncio.get_running_loop()),
                database=database, settings=settings,
            )  # fmt: skip
            running = hosted(contract, "apps.inside", service=service, **layers)
        else:
            pool = pool_of(
                contract, "apps.inside", min=1, max=1, onward=onward, settings=settings, database=url,
                spans=telemetry.export_worker_span, concurrency=1 if place == "main thread" else 16,
            )  # fmt: skip
            running = working(contract, pool, **layers)
        async with running as address, grpc.aio.insecure_channel(address) as client:
            yield Inside(conformance_pb2_grpc.EchoStub(client), telemetry, collector, seen)
        await target.close()
    await database.stop()
    await telemetry.shutdown(0.5)
    collector.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PLACES)
async def service(
    request: pytest.FixtureRequest, contract: Contract, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Inside]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_METRICS_EXPORTER", "none")
        async with running(request.param, contract, tmp_path_factory.mktemp("inside")) as found:
            yield found


@pytest_asyncio.fixture(loop_scope="module")
async def inside(service: Inside) -> Inside:
    """The service without what it did in other tests."""
    await service.forget()
    return service


async def test_the_context(inside: Inside) -> None:
    told = json.loads((await inside.stub.Unary(pb.EchoRequest(), metadata=[("x-key", "value")])).text)
    assert told == {
        "started": ["echo"],
        "service": "echo",
        "method": f"/{ECHO}/Unary",
        "subject": "ada",
        "roles": ["admin", "user"],
        "claims": ADA.claims,
        "caller": "friend",
        "settings": {"sides": 6},
        "key": "value",
    }


async def test_claims_are_whatever_json_has(inside: Inside) -> None:
    told = json.loads((await inside.stub.Unary(pb.EchoRequest(), metadata=[("x-key", "odd")])).text)
    assert (told["subject"], told["claims"]) == ("bea", ODD.claims)


async def answered(inside: Inside, call: Any, text: str) -> pb.EchoResponse:
    """Return the first answer in time: Slow has 500 ms, which a busy machine may take for anything else."""
    while True:
        try:
            answer: pb.EchoResponse = await call(
                pb.EchoRequest(text=text), timeout=5, metadata=[("authorization", "Bearer of-ada")]
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            await inside.forget()
        else:
            return answer


@pytest.mark.parametrize(("method", "text"), [("Idempotent", "hello"), ("Slow", "hello"), ("Slow", "own loop")])
async def test_a_stub_carries_deadline_user_and_trace(inside: Inside, method: str, text: str) -> None:
    answer = await answered(inside, getattr(inside.stub, method), text)
    assert answer.text == text
    assert answer.HasField("remaining")
    assert answer.remaining.ToTimedelta().total_seconds() < 5.1  # grpcio rounds a timeout up
    assert inside.onward[0].metadata.wire(b"traceparent") is not None
    spans = await inside.spans()
    server, own, client = spans[f"{ECHO}/{method}"], spans["own"], spans[f"{ECHO}/Unary"]
    assert own.parent_span_id == server.span_id
    assert client.parent_span_id == own.span_id
    assert server.trace_id == own.trace_id == client.trace_id
    assert "mine" in attributes(server)


async def test_what_is_done_to_the_current_span(inside: Inside) -> None:
    await inside.stub.Idempotent(pb.EchoRequest(text="hello"))
    spans = await inside.spans()
    server = spans[f"{ECHO}/Idempotent"]
    assert [value.int_value for value in attributes(server)["mine"].array_value.values] == [1, 2]
    assert [(event.name, attributes(event)["how"].string_value) for event in server.events] == [("happened", "well")]
    assert attributes(spans["own"])["deep"].bool_value is True


async def test_a_bug_is_in_the_trace(inside: Inside) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inside.stub.Idempotent(pb.EchoRequest(text="bug"))
    assert (caught.value.code().name, caught.value.details()) == ("INTERNAL", "internal error")
    server = (await inside.spans())[f"{ECHO}/Idempotent"]
    assert server.status.message == "RuntimeError: broken inside"
    [event] = [event for event in server.events if event.name == "exception"]
    assert "inside.py" in attributes(event)["exception.stacktrace"].string_value


async def test_an_answer_that_has_a_cause_is_no_bug(inside: Inside) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inside.stub.Idempotent(pb.EchoRequest(text="answer"))
    assert (caught.value.code().name, caught.value.details()) == ("NOT_FOUND", "no such user")
    server = (await inside.spans())[f"{ECHO}/Idempotent"]
    assert (server.status.code, [event.name for event in server.events]) == (0, ["happened"])


async def test_what_cannot_be_carried_is_replaced(inside: Inside) -> None:
    """Half a surrogate pair and integers beyond 64 bits, of the call's span and of the function's own."""
    assert (await inside.stub.Idempotent(pb.EchoRequest(text="odd"), timeout=5)).text == "told"
    await inside.spans()
    spans = [span for span in inside.collected() if span.name == "half ?"]
    assert sorted(span.kind for span in spans) == [1, 2]  # internal, server
    for span in spans:
        happened, raised = span.events[-2:]
        assert (happened.name, span.status.code, span.status.message) == ("half ?", 2, "half ?")
        assert attributes(raised)["exception.message"].string_value == "half ?"
        for told in (attributes(span), attributes(happened)):
            assert (told["large"].string_value, told["half"].string_value) == (str(2**70), "?")
            assert [one.string_value for one in told["many"].array_value.values] == ["?", str(-(2**70))]
            assert told["?"].int_value == 1


async def test_every_kind_of_onward_call(inside: Inside) -> None:
    answers = [answer async for answer in inside.stub.ServerStream(pb.EchoRequest())]
    assert [answer.text for answer in answers] == ["s", "s", "s", "a,b", "both", "NOT_FOUND none"]
    assert answers[-1].index >= 1  # the details


async def test_a_transaction(inside: Inside) -> None:
    answer = await inside.stub.ClientStream(iter([pb.EchoRequest(text="a"), pb.EchoRequest(text="b")]))
    assert answer.text == "a,b"
    spans = await inside.spans()
    assert spans["INSERT"].parent_span_id == spans[f"{ECHO}/ClientStream"].span_id
