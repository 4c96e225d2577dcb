"""CloudEvents in binary mode: encoding and decoding."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import RFC_4122, UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.events.cloudevents import Event, MalformedEventError, made_at, new_id

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
EVENT = Event(
    id="1", type="a.v1.Made", source="a", key="Ada L.", time=datetime(2026, 11, 22, 1, 2, 3, 4, UTC), data=b"\x0a\x01x"
)


def test_the_headers() -> None:
    assert EVENT.to_headers() == {
        "Nats-Msg-Id": "1",
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "a",
        "ce-type": "a.v1.Made",
        "ce-time": "2026-11-22T01:02:03.000004Z",
        "ce-subject": "Ada%20L.",
        "content-type": "application/protobuf",
    }
    assert EVENT.subject == "events.a-v1-Made.7.Ada%20L%2E"


@given(
    st.builds(
        Event,
        id=st.uuids().map(str),
        type=st.just("a.v1.Made"),
        source=st.just("reg-1"),
        key=st.just("") | TEXT,
        time=st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5))])),
        data=st.binary(),
        traceparent=st.just("") | st.just("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        tracestate=st.just("") | TEXT,
        hops=st.integers(0, 20),
    )
)
def test_what_is_written_is_read(event: Event) -> None:
    headers = event.to_headers()
    assert all(value.isascii() and value.isprintable() and value.strip() == value for value in headers.values())
    assert Event.from_message(headers, event.data) == event


def test_headers_of_others() -> None:
    headers = {"Ce-SpecVersion": "1.0", "CE-ID": "9", "Ce-Source": "/there", "Ce-Type": "a.v1.Made"}
    read = Event.from_message(headers, b"")
    assert (read.id, read.source, read.key, read.hops) == ("9", "/there", "", 0)
    assert read.time == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ce-id": None}, "no ce-id among the headers"),
        ({"ce-id": None, "ce-type": None}, "no ce-id, ce-type among"),
        ({"ce-specversion": "0.3"}, "this mesh reads 1.0"),
        ({"content-type": "application/json"}, "an event's body is application/protobuf"),
        ({"ce-time": "yesterday"}, "no RFC 3339 time"),
        ({"mesh-hops": "-1"}, "mesh-hops is '-1'"),
        ({"mesh-hops": "1" * 5000}, "mesh-hops is '1{40}', which is no number of at most six digits"),
        ({"mesh-hops": "٣"}, "which is no number"),
    ],
)
def test_what_is_no_event_says_why(change: dict[str, str | None], text: str) -> None:
    headers = {name: value for name, value in {**EVENT.to_headers(), **change}.items() if value is not None}
    with pytest.raises(MalformedEventError, match=text):
        Event.from_message(headers, b"")


def test_no_headers_at_all() -> None:
    with pytest.raises(MalformedEventError, match="not a CloudEvent"):
        Event.from_message(None, b"")


def test_an_id_says_when_it_was_made() -> None:
    before = datetime.now(UTC)
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == len(ids)
    made = [made_at(one) for one in ids]
    assert all(one is not None and abs((one - before).total_seconds()) < 60 for one in made)
    assert [UUID(one).variant for one in ids] == [RFC_4122] * len(ids)
    assert made_at(str(uuid4())) is None
    assert made_at("redrive/7") is None
