"""What is recorded, how it is found, and who hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from audit.v1 import audit_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from meshapi.v1 import annotations_pb2 as meshapi
from registration.v1 import registration_pb2
from sample import Sample
from sqlalchemy import text

from mesh import Identity, InvalidArgument
from mesh.call import Metadata

REGISTERED, UPDATED, DELETED, CHANGE = (
    *(f"registration.v1.User{what}" for what in ("Registered", "Updated", "Deleted")), "meshapi.v1.Change",
)  # fmt: skip


async def listed(sample: Sample, **request: Any) -> Any:
    assert sample.audit is not None
    return await sample.audit.call("ListRecords", pb.ListRecordsRequest(**request))


async def rename(sample: Sample, user: Any, name: str) -> None:
    request = registration_pb2.UpdateUserRequest(user=registration_pb2.User(id="me", name=name))
    await sample.registration.call("UpdateUser", request, identity=Identity(user.id))
    await sample.settle()


async def test_the_whole_life_of_a_user_is_recorded(sample: Sample):
    ada = await sample.register("ada")
    await rename(sample, ada, "lovelace")
    async with sample.registration.transaction() as tx:  # by hand
        await tx.execute(text("UPDATE users SET email = 'new@example.com'"))
    request = registration_pb2.DeleteUserRequest(id="me")
    await sample.registration.call("DeleteUser", request, identity=Identity(ada.id))
    await sample.settle()
    records = list((await listed(sample)).records)[::-1]
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    assert {record.user_id for record in records} == {ada.id}
    events = [
        (record.type, record.event["name"]) for record in records if record.HasField("event") and "name" in record.event
    ]
    assert events == [(REGISTERED, "ada"), (UPDATED, "lovelace")]
    assert sum(record.type == DELETED for record in records) == 1
    changes = [record.change for record in records if record.HasField("change")]
    assert [meshapi.Change.Operation.Name(change.operation) for change in changes] == [
        "INSERT",
        "UPDATE",
        "UPDATE",
        "UPDATE",
        "DELETE",
    ]
    assert [(change.before["state"], change.after["state"]) for change in changes[1:2]] == [("pending", "active")]
    assert changes[3].after["email"] == "new@example.com"
    assert all(record.event_id and record.event_time.seconds and record.record_time.seconds for record in records)
    assert len({record.event_id for record in records}) == len(records)


async def test_pages_and_filters(sample: Sample):
    ada, grace = await sample.register("ada"), await sample.register("grace")
    await rename(sample, ada, "lovelace")
    everything = list((await listed(sample)).records)
    found, token = [], ""
    while True:
        page = await listed(sample, page_size=2, page_token=token)
        found += page.records
        assert len(page.records) <= 2
        token = page.next_page_token
        if not token:
            break
    assert found == everything
    mine = [record for record in everything if record.user_id == grace.id]
    assert list((await listed(sample, user_id=grace.id)).records) == mine
    assert [record.user_id for record in (await listed(sample, type=REGISTERED)).records] == [grace.id, ada.id]
    at = everything[1].event_time
    since, until = await listed(sample, since=at), await listed(sample, until=at)
    assert {record.sequence for record in (*since.records, *until.records)} == {one.sequence for one in everything}
    assert everything[1] in since.records
    assert everything[1] not in until.records


@pytest.mark.parametrize(
    "wrong",
    [
        {"page_size": -1},
        {"page_token": "x"},
        {"page_token": "-1"},
        {"page_token": "٣"},
        {"page_token": str(2**63)},
        {"page_token": "9" * 19},
        {"page_token": "9" * 5000},
        {"since": Timestamp(seconds=2**62)},
        {"until": Timestamp(nanos=-1)},
    ],
)
async def test_what_cannot_be_is_named(sample: Sample, wrong: dict[str, Any]):
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        await listed(sample, **wrong)


def watch(sample: Sample, **request: Any) -> AsyncIterator[Any]:
    assert sample.audit is not None
    context = sample.audit.context("WatchRecords", Metadata())
    stream: AsyncIterator[Any] = sample.audit.function("WatchRecords")(pb.WatchRecordsRequest(**request), context)
    return stream


async def test_records_are_streamed_as_they_are_made(sample: Sample):
    await sample.register("before")
    stream, filtered = watch(sample), watch(sample, type=REGISTERED)
    waiting = [asyncio.ensure_future(anext(stream)), asyncio.ensure_future(anext(filtered))]
    await asyncio.sleep(0.1)  # both have asked where they begin
    ada = await sample.register("ada")
    async with asyncio.timeout(10):
        first, registered = await asyncio.gather(*waiting)
        assert first.user_id == registered.user_id == ada.id
        assert registered.type == REGISTERED
        seen = [first, await anext(stream), await anext(stream)]
        assert [record.sequence for record in seen] == [first.sequence, first.sequence + 1, first.sequence + 2]
        again = watch(sample, after=first.sequence)
        assert await anext(again) == seen[1]
