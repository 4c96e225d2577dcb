"""What travels with a call besides its messages: the values in ``head`` and ``extra`` of the frames, as msgpack.

Values that a call may never look at (metadata, identity) stay encoded until it does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from mesh.telemetry import worker_spans

if TYPE_CHECKING:
    from mesh.call import Call

__all__ = ["Asked", "Ending", "Loaded", "Onward", "decoder", "encode", "head_of"]

Pairs = list[tuple[bytes, bytes]]


class _AskedOut(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Head of a call of the sidecar, as it is written.

    Attributes:
        span: The server span: trace id (16 bytes), span id (8), W3C flags (1), 1 if it records; empty if there is none.
        state: Its ``tracestate``, or "".
        caller: ``Call.caller``.
        identity: Subject, roles, claims of the user, or None; as JSON if msgpack cannot say them.
        metadata: The wire pairs.
    """

    span: bytes
    state: str
    caller: str | None
    identity: Any
    metadata: Any


class _DeliveredOut(_AskedOut, array_like=True, gc=False, frozen=True):
    """Head of a call that is a delivery.

    Attributes:
        delivered: Consumer, event, hops of ``mesh.events.consume.delivery_call.Delivered``.
    """

    delivered: tuple[str, str, int]


class Asked(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Both as they are read."""

    span: bytes
    state: str
    caller: str | None
    identity: msgspec.Raw
    metadata: msgspec.Raw
    delivered: tuple[str, str, int] | None = None


class Onward(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Head of a call that a worker makes.

    Attributes:
        path: ``/package.Service/Method``.
        streams: Whether its requests, and its responses, are streams.
        span: As in ``Asked``: the span that is current where the call is made.
        state: Its ``tracestate``.
        metadata: The wire pairs.
        wait: ``wait_for_ready``.
        compression: As in ``mesh.call.Call``.
        baggage: Of the context in which the call is made; None if there is none.
    """

    path: str
    streams: tuple[bool, bool]
    span: bytes
    state: str
    metadata: Pairs
    wait: bool
    compression: str
    baggage: dict[str, str] | None


class Ending(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Extra of a STATUS frame.

    Attributes:
        message: Of a status other than OK.
        details: Its ``google.rpc.Status``, serialized; empty if there are no details.
        where: ``StatusError.where``.
        headers: Response metadata, if it has not gone in a HEADERS frame.
        trailers: Response metadata.
        notes: What the function did to the current span: (name of the method, arguments).
        peer: ``Call.peer``.
    """

    message: str = ""
    details: bytes = b""
    where: str = ""
    headers: Pairs = []
    trailers: Pairs = []
    notes: list[tuple[str, list[Any]]] = []
    peer: str = ""


class Loaded(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Body of a READY frame: when what happened, Unix time in nanoseconds.

    Attributes:
        began: The worker was given its connection, forked for it or ahead.
        loaded: Its functions were loaded.
        imports: The slowest imports on the way: module, seconds.
    """

    began: int
    loaded: int
    imports: list[tuple[str, float]]


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode


def decoder(kind: Any) -> Any:
    """Return what decodes ``kind``."""
    return msgspec.msgpack.Decoder(kind).decode


def head_of(call: Call) -> bytes:
    """Return the head of a call, or of a delivery, for the worker that answers it."""
    span, state = worker_spans.current_span()
    identity, delivered = call.identity, call.delivery
    user = None if identity is None else (identity.subject, list(identity.roles), dict(identity.claims))
    if delivered is not None:  # nobody calls: it has no user
        told = (delivered.consumer, delivered.event, delivered.hops)
        return encode(_DeliveredOut(span, state, call.caller, user, call.metadata.pairs, told))
    try:
        return encode(_AskedOut(span, state, call.caller, user, call.metadata.pairs))
    except (OverflowError, UnicodeEncodeError):  # claims may be what only JSON has
        return encode(_AskedOut(span, state, call.caller, json.dumps(user), call.metadata.pairs))
