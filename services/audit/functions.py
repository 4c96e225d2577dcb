"""Functions of audit.v1.Audit.

This module does not check that each event is recorded once. The mesh delivers an event until it has been recorded, and
the transaction of a redelivery has no effect after one that was committed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from audit.v1 import audit_pb2 as pb
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from meshapi.v1 import annotations_pb2 as meshapi
from registration.v1 import events_pb2 as events
from sqlalchemy import Select, insert, select, update

from mesh import Context, InvalidArgument
from services.audit.tables import counter, records

PAGE, LARGEST_PAGE = 50, 500
LAST = 2**63 - 1
"""The largest sequence number that the database holds."""
POLL_INTERVAL = 1.0
"""Seconds between reads of records that other replicas have written."""

CHANGE = meshapi.Change.DESCRIPTOR.full_name
_EPOCH = datetime.fromtimestamp(0, UTC)
_watchers: set[asyncio.Future[None]] = set()
"""Calls of this process that wait for the next record."""


# -- for admins --


async def list_records(request: pb.ListRecordsRequest, context: Context) -> pb.ListRecordsResponse:
    """Return a page of records, the newest first."""
    size = min(request.page_size or PAGE, LARGEST_PAGE)
    query = _of(select(records), request.user_id, request.type).order_by(records.c.sequence.desc()).limit(size + 1)
    if request.page_token:
        query = query.where(records.c.sequence < _place(request.page_token))
    if request.HasField("since"):
        query = query.where(records.c.happened_at >= _microseconds(request.since, "since"))
    if request.HasField("until"):
        query = query.where(records.c.happened_at < _microseconds(request.until, "until"))
    async with context.transaction() as tx:
        rows = (await tx.execute(query)).all()
    page, more = rows[:size], rows[size:]
    token = str(page[-1].sequence) if more else ""
    return pb.ListRecordsResponse(records=[_record(row) for row in page], next_page_token=token)


async def watch_records(request: pb.WatchRecordsRequest, context: Context) -> AsyncIterator[pb.Record]:
    """Stream records, from a given one on or from the next one on."""
    after = request.after if request.after > 0 else await _last(context)
    loop = asyncio.get_running_loop()
    while True:
        recorded = loop.create_future()
        _watchers.add(recorded)  # before the read, so that no record is missed
        try:
            last = await _last(context)
            while after < last:
                until = min(last, after + LARGEST_PAGE)
                query = select(records).where(records.c.sequence > after, records.c.sequence <= until)
                async with context.transaction() as tx:
                    rows = await tx.execute(_of(query, request.user_id, request.type).order_by(records.c.sequence))
                for row in rows:
                    yield _record(row)
                after = until
            await asyncio.wait([recorded], timeout=POLL_INTERVAL)
        finally:
            _watchers.discard(recorded)


# -- for events and changes --


async def on_user_registered(event: events.UserRegistered, context: Context) -> Empty:
    """Record the event."""
    return await _keep(context, event, event.user_id)


async def on_user_updated(event: events.UserUpdated, context: Context) -> Empty:
    """Record the event."""
    return await _keep(context, event, event.user_id)


async def on_user_roles_changed(event: events.UserRolesChanged, context: Context) -> Empty:
    """Record the event."""
    return await _keep(context, event, event.user_id)


async def on_user_deleted(event: events.UserDeleted, context: Context) -> Empty:
    """Record the event."""
    return await _keep(context, event, event.user_id)


async def on_user_row(change: meshapi.Change, context: Context) -> Empty:
    """Record the event."""
    return await _keep(context, change, change.key.fields["id"].string_value)


async def _keep(context: Context, what: Message, user_id: str) -> Empty:
    happened = datetime.fromisoformat(str(context.metadata["ce-time"]))
    async with context.transaction() as tx:
        sequence = (
            await tx.execute(update(counter).values(last=counter.c.last + 1).returning(counter.c.last))
        ).scalar_one()
        await tx.execute(
            insert(records).values(
                sequence=sequence,
                recorded_at=time.time_ns() // 1000,
                happened_at=(happened - _EPOCH) // timedelta(microseconds=1),
                event_id=context.metadata["ce-id"],
                type=what.DESCRIPTOR.full_name,
                user_id=user_id,
                data=MessageToDict(what),
            )
        )
    for watcher in _watchers:
        if not watcher.done():
            watcher.set_result(None)
    return Empty()


async def _last(context: Context) -> int:
    async with context.transaction() as tx:
        return int((await tx.execute(select(counter.c.last))).scalar_one())


def _of(query: Select[Any], user_id: str, type_: str) -> Select[Any]:
    if user_id:
        query = query.where(records.c.user_id == user_id)
    return query.where(records.c.type == type_) if type_ else query


def _place(token: str) -> int:
    if not (token.isascii() and token.isdecimal()) or len(token) > len(str(LAST)) or int(token) > LAST:
        text = "must be a next_page_token as it was given"
        raise InvalidArgument(f"page_token {text}", violations={"page_token": text})
    return int(token)


def _microseconds(at: Timestamp, field: str) -> int:
    try:
        return at.ToMicroseconds()
    except ValueError:
        text = "must be a time from the year 1 to 9999"
        raise InvalidArgument(f"{field} {text}", violations={field: text}) from None


def _record(row: Any) -> pb.Record:
    record = pb.Record(sequence=row.sequence, event_id=row.event_id, type=row.type, user_id=row.user_id)
    record.record_time.FromMicroseconds(row.recorded_at)
    record.event_time.FromMicroseconds(row.happened_at)
    ParseDict(row.data, record.change if row.type == CHANGE else record.event)
    return record


if TYPE_CHECKING:  # type checkers report functions that are missing or have other types than the contract
    from audit.v1.audit_pb2_grpc import AuditFunctions

    from services.audit import functions  # noqa: PLW0406 - this module, to be checked

    _: AuditFunctions = functions
