"""Events on the wire: CloudEvents 1.0 in binary mode, attributes in headers and the protobuf message in the body.

Sources: CloudEvents 1.0.2; its NATS protocol binding (``ce-`` headers, values percent-encoded as in the HTTP binding,
3.1.3.2); its distributed tracing extension (``traceparent``, ``tracestate``). The header ``mesh-hops`` is the mesh's
own.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote
from uuid import UUID

from mesh.events.subjects import event_subject

__all__ = ["CONTENT_TYPE", "HOPS", "MESSAGE_ID", "Event", "MalformedEventError", "made_at", "new_id"]

CONTENT_TYPE = "application/protobuf"
MESSAGE_ID = "Nats-Msg-Id"
"""Header with the id by which JetStream drops duplicates."""
HOPS = "mesh-hops"
"""Header with the number of consecutive deliveries that led to the event."""

_NUMBER = re.compile(r"[0-9]{1,6}")
_UNSAFE = re.compile(r"[^\x21\x23\x24\x26-\x7e]")
"""Characters that are percent-encoded in a header's value: space, ``"``, ``%`` and all but printable ASCII."""


class MalformedEventError(ValueError):
    """A message on an event's subject is no event; the text names the missing or wrong attribute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event.

    Attributes:
        id: Its unique id; the same for each copy of an event.
        type: Full name of its message.
        source: The service of mesh.toml that published it.
        key: The value that orders it, or "".
        time: Time of its publication.
        data: The serialised message.
        traceparent: The span that published it (W3C Trace Context), or "".
        tracestate: The state of that span, or "".
        hops: Consecutive deliveries that led to it; 0 when no event caused it.
    """

    id: str
    type: str
    source: str
    key: str
    time: datetime
    data: bytes
    traceparent: str = ""
    tracestate: str = ""
    hops: int = 0

    @property
    def subject(self) -> str:
        """The subject that it is published on."""
        return event_subject(self.type, self.key, self.id)

    def to_headers(self) -> dict[str, str]:
        """Return the headers of its message."""
        headers = {
            MESSAGE_ID: self.id,
            "ce-specversion": "1.0",
            "ce-id": self.id,
            "ce-source": self.source,
            "ce-type": self.type,
            "ce-time": f"{self.time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z",
            "content-type": CONTENT_TYPE,
        }
        if self.key:
            headers["ce-subject"] = _encode(self.key)
        if self.traceparent:
            headers["ce-traceparent"] = self.traceparent
        if self.tracestate:
            headers["ce-tracestate"] = _encode(self.tracestate)
        if self.hops:
            headers[HOPS] = str(self.hops)
        return headers

    @classmethod
    def from_message(cls, headers: Mapping[str, str] | None, data: bytes) -> Event:
        """Return the event of a message.

        Args:
            headers: The message's headers; names in any case, since other publishers may write them so.
            data: Its body.

        Raises:
            MalformedEventError: An attribute that CloudEvents or this mesh requires is missing or cannot be read.
        """
        given = headers or {}
        # One that occurs twice, in two spellings, could be signed in one of them and read in the other.
        found = {name.lower(): unquote(value) if "%" in value else value for name, value in given.items()}
        if len(found) != len(given):
            raise MalformedEventError("a header occurs twice, in capitals and in small letters")
        missing = [name for name in ("ce-specversion", "ce-id", "ce-source", "ce-type") if not found.get(name)]
        if missing:
            raise MalformedEventError(f"no {', '.join(missing)} among the headers: not a CloudEvent in binary mode")
        if found["ce-specversion"] != "1.0":
            raise MalformedEventError(f"ce-specversion is {found['ce-specversion']!r}; this mesh reads 1.0")
        if found.get("content-type", CONTENT_TYPE) != CONTENT_TYPE:
            raise MalformedEventError(f"content-type is {found['content-type']!r}; an event's body is {CONTENT_TYPE}")
        hops = found.get(HOPS, "0")
        if not _NUMBER.fullmatch(hops):
            raise MalformedEventError(f"{HOPS} is {hops[:40]!r}, which is no number of at most six digits")
        return cls(
            id=found["ce-id"],
            type=found["ce-type"],
            source=found["ce-source"],
            key=found.get("ce-subject", ""),
            time=_time(found.get("ce-time")),
            data=data,
            traceparent=found.get("ce-traceparent", ""),
            tracestate=found.get("ce-tracestate", ""),
            hops=int(hops),
        )


def new_id() -> str:
    """Return the id of a new event: a UUID of version 7 (RFC 9562), whose time helps to find it in the stream."""
    random = secrets.randbits(74)
    milliseconds = time.time_ns() // 1_000_000 & (1 << 48) - 1
    high = milliseconds << 16 | 7 << 12 | random >> 62
    return str(UUID(int=high << 64 | 2 << 62 | random & (1 << 62) - 1))


def made_at(id: str) -> datetime | None:  # noqa: A002 - as in Event
    """Return the time at which an id was made, by its maker's clock; None for an id without a time."""
    try:
        found = UUID(id)
    except ValueError:
        return None
    return datetime.fromtimestamp((found.int >> 80) / 1000, UTC) if found.version == 7 else None  # noqa: PLR2004


def _time(text: str | None) -> datetime:
    """Return the time of an RFC 3339 text; the epoch if the attribute, which is optional, is missing."""
    if text is None:
        return datetime.fromtimestamp(0, UTC)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise MalformedEventError(f"ce-time is {text!r}, which is no RFC 3339 time") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _encode(value: str) -> str:
    return _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)
