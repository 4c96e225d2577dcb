"""Publications of a service: allowed types, sizes and attributes of events."""

from __future__ import annotations

import pytest
from events.v1 import events_pb2 as pb
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, BytesValue, StringValue
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN

from mesh.call import Call, Metadata, current
from mesh.contract.model import Contract
from mesh.events.consume.delivery_call import DeliveryCall
from mesh.events.hops import carry, hops
from mesh.events.publish.publisher import Publications, key_of

SHOP = ["events.v1.Shop"]


@pytest.fixture
def publications(contract: Contract) -> Publications:
    return Publications(contract, SHOP, "shop")


def test_whether_there_are_any(contract: Contract, publications: Publications) -> None:
    assert publications
    assert not Publications(contract, ["conformance.v1.Echo"], "echo")


@pytest.mark.parametrize(
    ("message", "key"),
    [
        (pb.Ordered(customer="ada"), "ada"),
        (pb.Ordered(), ""),
        (pb.Counted(number=-5), "-5"),
        (pb.Counted(), "0"),
        (pb.Noted(text="x"), ""),
    ],
)
def test_the_key_is_the_field_that_the_contract_names(publications: Publications, message: object, key: str) -> None:
    assert publications.event(message, INVALID_SPAN).key == key


@pytest.mark.parametrize(
    ("message", "key"), [(BoolValue(value=True), "true"), (BytesValue(value=b"\xab"), "ab"), (StringValue(), "")]
)
def test_a_key_is_text(message: Message, key: str) -> None:
    assert key_of(message, "value") == key


def test_every_event_has_an_id_of_its_own(publications: Publications) -> None:
    assert len({publications.event(pb.Noted(), INVALID_SPAN).id for _ in range(100)}) == 100


def test_it_names_the_span_that_published_it(publications: Publications) -> None:
    span = TracerProvider().get_tracer("test").start_span("publish")
    context = span.get_span_context()
    event = publications.event(pb.Noted(), span)
    assert event.traceparent == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert publications.event(pb.Noted(), INVALID_SPAN).traceparent == ""


def call(caller: str | None, *metadata: tuple[str, str]) -> Call:
    made = Call(None, Metadata(metadata))
    made.caller = caller
    return made


@pytest.mark.parametrize(
    ("answered", "count"),
    [
        (None, 0),
        (call(None), 0),
        (call("login"), 0),
        (call("login", ("mesh-hops", "3")), 3),
        (call("login", ("mesh-hops", "many")), 0),
        (call("login", ("mesh-hops", "3" * 5000)), 0),
        (call(None, ("mesh-hops", "3")), 0),  # whoever calls from outside may say what he likes
    ],
)
async def test_hops_travel_with_the_calls_of_services(
    publications: Publications, answered: Call | None, count: int
) -> None:
    token = current.set(answered)
    try:
        assert publications.event(pb.Noted(), INVALID_SPAN).hops == count
        onward = Call(None, Metadata())

        async def sent(call: Call) -> None:
            assert call.metadata.wire(b"mesh-hops") == (str(count).encode() if count else None)

        await carry(onward, sent)
    finally:
        current.reset(token)


def test_a_delivery_is_one_hop_more(publications: Publications) -> None:
    event = publications.event(pb.Noted(), INVALID_SPAN)
    assert hops(DeliveryCall(None, event, "delivery.v1.Recorder/OnNoted", 1, 0.0)) == 1
