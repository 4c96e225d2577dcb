"""msgpack payloads of frames: call heads, the extra of a status, load times.

Values that a function may never look at (metadata, identity) stay encoded until it does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from mesh.telemetry import worker_spans

if TYPE_CHECKING:
    from mesh.call import Call

__all__ = ["CallHead", "LoadTimes", "OnwardHead", "StatusExtra", "call_head", "decoder", "encode"]

MetadataPairs = list[tuple[bytes, bytes]]


class _OutgoingCallHead(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Head of a call of the sidecar, for encoding.

    Attributes:
        span: The server span: trace id (16 bytes), span id (8), W3C flags (1), 1 if it records; empty if there is none.
        state: Its ``tracestate``, or "".
        caller: ``Call.caller``.
        identity: Subject, roles, claims, scopes of the caller, or None; as JSON if msgpack cannot represent them.
        metadata: The metadata as on the wire.
    """

    span: bytes
    state: str
    caller: str | None
    identity: Any
    metadata: Any


class _OutgoingDeliveryHead(_OutgoingCallHead, array_like=True, gc=False, frozen=True):
    """Head of a delivery, for encoding.

    Attributes:
        delivery: Consumer, event, hops, as in ``mesh.events.consume.delivery_call.Delivered``.
    """

    delivery: tuple[str, str, int]


class CallHead(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Head of a call or a delivery, decoded; ``identity`` and ``metadata`` are not."""

    span: bytes
    state: str
    caller: str | None
    identity: msgspec.Raw
    metadata: msgspec.Raw
    delivery: tuple[str, str, int] | None = None


class OnwardHead(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Head of an onward call: one that a function in a worker makes.

    Attributes:
        path: ``/package.Service/Method``.
        streams: Whether its requests, and its responses, are streams.
        span: As in ``CallHead``: the span that is current where the call is made.
        state: Its ``tracestate``.
        metadata: The metadata as on the wire.
        wait: ``wait_for_ready``.
        compression: As in ``mesh.call.Call``.
        baggage: Baggage of the context in which the call is made; None if there is none.
    """

    path: str
    streams: tuple[bool, bool]
    span: bytes
    state: str
    metadata: MetadataPairs
    wait: bool
    compression: str
    baggage: dict[str, str] | None


class StatusExtra(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Extra of a STATUS frame.

    Attributes:
        message: Message of a status other than OK.
        details: Its ``google.rpc.Status``, serialized; empty if there are no details.
        where: ``StatusError.where``.
        headers: Response metadata, unless a HEADERS frame has carried it.
        trailers: Trailing metadata.
        notes: Operations of the function on the server span: (name of the span's method, arguments).
        peer: ``Call.peer``.
    """

    message: str = ""
    details: bytes = b""
    where: str = ""
    headers: MetadataPairs = []
    trailers: MetadataPairs = []
    notes: list[tuple[str, list[Any]]] = []
    peer: str = ""


class LoadTimes(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Body of a READY frame; times are Unix time in nanoseconds.

    Attributes:
        began_ns: When the worker was given its connection, whether it was forked for it or ahead.
        loaded_ns: When its functions were loaded.
        imports: The slowest imports in between: module, seconds.
    """

    began_ns: int
    loaded_ns: int
    imports: list[tuple[str, float]]


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode


def decoder(kind: Any) -> Any:
    """Return a function that decodes msgpack bytes as ``kind``."""
    return msgspec.msgpack.Decoder(kind).decode


def call_head(call: Call) -> bytes:
    """Return the head of a call, or of a delivery, for the worker that serves it."""
    span, state = worker_spans.current_span()
    identity, delivery = call.identity, call.delivery
    user = None
    if identity is not None:
        scopes = None if identity.scopes is None else list(identity.scopes)
        user = (identity.subject, list(identity.roles), dict(identity.claims), scopes)
    if delivery is not None:  # a delivery has no user
        source = (delivery.consumer, delivery.event, delivery.hops)
        return encode(_OutgoingDeliveryHead(span, state, call.caller, user, call.metadata.pairs, source))
    try:
        return encode(_OutgoingCallHead(span, state, call.caller, user, call.metadata.pairs))
    except (OverflowError, UnicodeEncodeError):  # claims may hold values that only JSON can represent
        return encode(_OutgoingCallHead(span, state, call.caller, json.dumps(user), call.metadata.pairs))
