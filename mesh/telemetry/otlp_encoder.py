"""Our spans → OTLP bytes, without a protobuf object for each: what a method's spans share is encoded once.

Through the SDK's own way (``ReadableSpan``, then ``encode_spans``) a span costs about 35 µs, which is more than a whole
call; here about 2. What is out of the ordinary (events, links, trace state, limits, odd values) still goes that way.

Source: opentelemetry/proto/trace/v1/trace.proto; https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from struct import Struct, pack
from typing import Any, NamedTuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from mesh.telemetry import worker_spans
from mesh.telemetry.attribute_values import sound
from mesh.telemetry.span import Constant, Span
from mesh.text import text_of

__all__ = ["Encoder"]

_SPANS, _RESOURCE_SPANS, _SCOPE_SPANS = b"\x12", b"\x0a", b"\x12"
"""Tags: ``ScopeSpans.spans``, ``ExportTraceServiceRequest.resource_spans``, ``ResourceSpans.scope_spans``."""
_LOCAL, _REMOTE = 0x100, 0x300
"""Span flags: whether the parent is remote is known, and it is not, or it is."""
_WHOLE = 1 << 64
_MOST_KEPT = 4096
_LONGEST_KEPT = 200


_NOTHING = (0, 0, 0)
_ROOT = Struct("<2s16s2s8sBQBQHI").pack
_CHILD = Struct("<2s16s2s8s2s8sBQBQHI").pack
"""What differs from span to span has one length: trace_id, span_id, parent_span_id, both times, flags, tags too."""


class _Shared(NamedTuple):
    """What spans of one name that ended alike have in common."""

    encoded: bytes
    keys: frozenset[str]
    """Of the attributes in it."""
    kept: object
    """What it was made of, kept so that nothing else gets its identity."""


class UnusualError(Exception):
    """A value that is left to the SDK's encoder."""


class Encoder:
    """Encodes batches of one component; for the thread that exports."""

    __slots__ = ("_frame", "_shared")

    def __init__(self) -> None:
        self._shared: dict[tuple[str, SpanKind, int, int, StatusCode], _Shared] = {}
        self._frame: tuple[bytes, bytes] | None = None

    def encode(self, batch: Sequence[Span | ReadableSpan]) -> tuple[bytes, int]:
        """Return a serialized ``ExportTraceServiceRequest``, and how many spans could not be encoded at all."""
        quick: list[bytes] = []
        others: list[ReadableSpan] = []
        lost = 0
        for span in batch:
            if isinstance(span, Span):
                try:
                    quick += self._span(span)
                except Exception:  # noqa: BLE001, S110 - UnusualError, half a surrogate pair, times before 1970
                    pass
                else:
                    if self._frame is None:
                        self._frame = _frame(span.readable())
                    continue
            try:
                others.append(span.readable() if isinstance(span, Span) else _sound(span))
            except Exception:  # noqa: BLE001 - one odd span must not take its batch with it
                lost += 1
        body = b""
        if quick:
            assert self._frame is not None  # noqa: S101 - set with the first quick span
            resource, scope = self._frame
            spans = scope + b"".join(quick)
            inner = resource + _SCOPE_SPANS + _varint(len(spans)) + spans
            body = _RESOURCE_SPANS + _varint(len(inner)) + inner
        if others:  # serialized messages that follow each other are one merged message
            try:
                body += encode_spans(others).SerializePartialToString()
            except Exception:  # noqa: BLE001 - as above
                told, odd = _each(others)
                body += told
                lost += odd
        return body, lost

    def _span(self, span: Span) -> tuple[bytes, bytes, bytes, bytes]:
        """Return tag and length, then the pieces of the span's message; their order in it means nothing."""
        if span.events or span.links or span.state or span.dropped != _NOTHING:
            raise UnusualError
        shared = self._shared.get((span.name, span.kind, id(span.constant), id(span.outcome), span.status))
        if shared is None or span.message:
            shared = self._share(span)
        own = span.attributes
        more = b""
        if own:
            if not (span.within_usual_limits() and shared.keys.isdisjoint(own)):
                raise UnusualError
            more = b"".join([_attribute(key, value) for key, value in own.items()])
        parent = span.parent
        trace_id, span_id = span.trace_id.to_bytes(16, "big"), span.span_id.to_bytes(8, "big")
        if parent is None:
            head = _ROOT(
                b"\x0a\x10", trace_id, b"\x12\x08", span_id, 0x39, span.start, 0x41, span.finish, 0x0185, _LOCAL
            )
        else:
            head = _CHILD(
                b"\x0a\x10", trace_id, b"\x12\x08", span_id, b"\x22\x08", parent.span_id.to_bytes(8, "big"),
                0x39, span.start, 0x41, span.finish, 0x0185, _REMOTE if parent.remote else _LOCAL,
            )  # fmt: skip
        return _SPANS + _varint(len(head) + len(shared.encoded) + len(more)), head, shared.encoded, more

    def _share(self, span: Span) -> _Shared:
        """Encode what the span shares with those of its name that ended like it, and keep it."""
        if not span.within_usual_limits():
            raise UnusualError
        named = WireSpan(name=span.name, kind=span.kind.value + 1).SerializeToString()  # type: ignore[arg-type]
        outcome: Mapping[str, Any] = span.outcome or {}
        if not span.constant.keys().isdisjoint(outcome):
            raise UnusualError
        pairs = [_attribute(key, value) for told in (span.constant, outcome) for key, value in told.items()]
        encoded = b"".join((named, *pairs, _status(span)))
        shared = _Shared(encoded, frozenset((*span.constant, *outcome)), (span.constant, outcome))
        if not span.message and type(span.constant) is Constant:
            if len(self._shared) >= _MOST_KEPT:
                self._shared.clear()
            self._shared[span.name, span.kind, id(span.constant), id(span.outcome), span.status] = shared
        return shared


def _sound(span: ReadableSpan) -> ReadableSpan:
    """Return a function's span; if it has what OTLP cannot carry, as it would come from a worker."""
    texts = (span.name, span.status.description or "", *(event.name for event in span.events))
    told = (span.attributes, *(event.attributes for event in span.events), *(link.attributes for link in span.links))
    if all(map(sound, told)) and all(text_of(text) is text for text in texts):
        return span
    return worker_spans.unpack(worker_spans.pack(span), span.resource)


def _each(spans: Sequence[ReadableSpan]) -> tuple[bytes, int]:
    """Encode spans one by one; return also how many of them could not be."""
    encoded = []
    for span in spans:
        with suppress(Exception):
            encoded.append(encode_spans([span]).SerializePartialToString())
    return b"".join(encoded), len(spans) - len(encoded)


def _frame(span: ReadableSpan) -> tuple[bytes, bytes]:
    """Return what surrounds every span: the resource with its tag, and the beginning of the scope's message."""
    resource_spans = encode_spans([span]).resource_spans[0]
    scope_spans = resource_spans.scope_spans[0]
    del resource_spans.scope_spans[:]
    del scope_spans.spans[:]
    return resource_spans.SerializeToString(), scope_spans.SerializeToString()


_pairs: dict[tuple[str, type, Any], bytes] = {}
"""What was encoded lately: most attributes come again and again."""


def _attribute(key: str, value: Any) -> bytes:
    kind = type(value)
    if kind not in _ENCODERS:
        raise UnusualError
    known = _pairs.get((key, kind, value))
    if known is not None:
        return known
    if type(key) is not str or not key:
        raise UnusualError
    inner = _ENCODERS[kind](value)
    name = key.encode()
    pair = b"\x0a" + _varint(len(name)) + name + b"\x12" + _varint(len(inner)) + inner
    encoded = b"\x4a" + _varint(len(pair)) + pair
    if len(_pairs) >= _MOST_KEPT:
        _pairs.clear()
    if len(encoded) <= _LONGEST_KEPT and kind is not float:  # 0.0 and -0.0 are one key
        _pairs[key, kind, value] = encoded
    return encoded


def _text(value: str) -> bytes:
    text = value.encode()
    return b"\x0a" + _varint(len(text)) + text


def _integer(value: int) -> bytes:
    if not -_WHOLE // 2 <= value < _WHOLE // 2:
        raise UnusualError
    return b"\x18" + _varint(value % _WHOLE)


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    str: _text,
    int: _integer,
    bool: lambda value: b"\x10\x01" if value else b"\x10\x00",
    float: lambda value: b"\x21" + pack("<d", value),
}
"""Type → ``AnyValue``."""


def _status(span: Span) -> bytes:
    if span.status is StatusCode.UNSET:
        return b"\x7a\x00"
    message = b"" if not span.message else span.message.encode()
    code: int = span.status.value
    inner = (b"\x12" + _varint(len(message)) + message if message else b"") + b"\x18" + _varint(code)
    return b"\x7a" + _varint(len(inner)) + inner


def _varint(value: int) -> bytes:
    if value < 0x80:  # noqa: PLR2004 - seven bits a byte
        return bytes((value,))
    found = bytearray()
    while value >= 0x80:  # noqa: PLR2004 - the same
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
