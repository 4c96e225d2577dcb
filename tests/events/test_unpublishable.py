"""Dead letters of rows that no broker takes: one for each method that would have been called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mesh.contract.model import ChangeTrigger, Contract, EventTrigger, GrpcService, Method, ScheduleTrigger, Trigger
from mesh.events.broker.nats_connection import Outgoing
from mesh.events.cloudevents import MESSAGE_ID
from mesh.events.consume.dead_letters import LEFT_OUT, read_dead_letter
from mesh.events.publish.outbox import Row
from mesh.events.unpublishable import dead_letter_maker

CHANGE = ChangeTrigger("shop", "odd name")
EVENT = EventTrigger("a.v1.Made")
TICK = ScheduleTrigger("@every 1s")


@pytest.fixture
def hearing(contract: Contract) -> Contract:
    def method(name: str, *triggers: Trigger) -> Method:
        kind: Any = object
        return Method(name, "b.v1.B", f"/b.v1.B/{name}", kind, kind, triggers=triggers)

    methods = [method("OnRow", CHANGE), method("OnMade", EVENT), method("Both", EVENT, CHANGE), method("Tick", TICK)]
    return replace(
        contract, services={"b.v1.B": GrpcService(name="b.v1.B", methods={one.name: one for one in methods})}
    )


@pytest.mark.parametrize(
    ("subject", "message", "methods"),
    [
        ("changes.shop.odd%20name", "changes.shop.odd%20name.3.k", ["OnRow", "Both"]),
        ("changes.shop.odd%20name", None, ["OnRow", "Both"]),
        ("changes.shop.odd", None, []),
        ("events.a-v1-Made.5.key", "events.a-v1-Made.5.key", ["OnMade", "Both"]),
        ("events.a-v1-Made.5.key", None, ["OnMade", "Both"]),
        ("ticks.b-v1-B.Tick", None, []),
        ("nonsense", None, []),
        ("", None, []),
    ],
)
def test_each_method_that_would_have_been_called_has_a_letter(
    hearing: Contract, subject: str, message: str | None, methods: list[str]
):
    row = Row(17, "id1", subject, "", b"12345")
    headers = {"ce-id": "id1", "ce-type": "a.v1.Made", "ce-subject": "k" * 2_000_000, MESSAGE_ID: "id1"}
    made = dead_letter_maker(hearing, "shop")(row, message and Outgoing(message, headers, b"x"), "too large")
    odd = dead_letter_maker(hearing, "shop")(row._replace(id="a\r\n\u20ac" * 1000), None, "unreadable")
    assert all(one.headers["ce-id"].isprintable() and one.headers["ce-id"].isascii() for one in odd)
    assert [one.subject for one in made] == [f"dead.b-v1-B.{name}" for name in methods]
    assert len({one.headers[MESSAGE_ID] for one in made}) == len(made)
    for one in made:
        told = read_dead_letter(one.headers)
        assert told.reason == "too large; it stays in the outbox of shop, sequence 17"
        assert (one.data, one.headers[LEFT_OUT], one.headers["ce-id"], told.stream) == (b"", "5", "id1", "")
        assert sum(map(len, one.headers.values())) < 4000
