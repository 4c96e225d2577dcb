"""OTLP encoder for spans of calls: writes bytes without a protobuf object for each span.

The part that the spans of a method share is encoded once. A span costs about 2 µs here. With the SDK (``ReadableSpan``,
then ``encode_spans``) it costs about 35 µs, which is more than a call takes. Unusual spans still go that way. They have
events, links, trace state or odd values, or are near the span limits.

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
from mesh.telemetry.attribute_values import are_plain
from mesh.telemetry.span import Constant, Span
from mesh.text import text_of

__all__ = ["Encoder"]

_SPANS, _RESOURCE_SPANS, _SCOPE_SPANS = b"\x12", b"\x0a", b"\x12"
"""Tags: ``ScopeSpans.spans``, ``ExportTraceServiceRequest.resource_spans``, ``ResourceSpans.scope_spans``."""
_LOCAL, _REMOTE = 0x100, 0x300
"""Span flags of a parent that is known to be local, or known to be remote."""
_UINT64_RANGE = 1 << 64
_MAX_CACHED = 4096
_MAX_CACHED_SIZE = 200
"""Bytes of an encoded attribute. Longer ones are not cached."""
_NONE_DROPPED = (0, 0, 0)
_ROOT_HEAD = Struct("<2s16s2s8sBQBQHI").pack
_CHILD_HEAD = Struct("<2s16s2s8s2s8sBQBQHI").pack
"""The parts that differ between spans: trace_id, span_id, parent_span_id, both times, flags. Their length is fixed."""


class _Shared(NamedTuple):
    """The encoded part that spans with the same name and outcome share."""

    encoded: bytes
    keys: frozenset[str]
    """Keys of the attributes in it."""
    kept: object
    """The source objects. They are kept alive so that no other object gets their ``id``."""


class UnusualError(Exception):
    """A span or value that only the SDK's encoder handles."""


class Encoder:
    """Encoder of one component, for its export thread."""

    __slots__ = ("_envelope", "_shared")

    def __init__(self) -> None:
        self._shared: dict[tuple[str, SpanKind, int, int, StatusCode], _Shared] = {}
        self._envelope: tuple[bytes, bytes] | None = None

    def encode(self, batch: Sequence[Span | ReadableSpan]) -> tuple[bytes, int]:
        """Return a serialized ``ExportTraceServiceRequest``, and the number of spans that could not be encoded."""
        fast: list[bytes] = []
        others: list[ReadableSpan] = []
        lost = 0
        for span in batch:
            if isinstance(span, Span):
                try:
                    fast += self._span(span)
                except Exception:  # noqa: BLE001, S110 - UnusualError, half a surrogate pair, times before 1970
                    pass
                else:
                    if self._envelope is None:
                        self._envelope = _envelope(span.readable())
                    continue
            try:
                others.append(span.readable() if isinstance(span, Span) else _encodable(span))
            except Exception:  # noqa: BLE001 - one odd span must not take its batch with it
                lost += 1
        body = b""
        if fast:
            assert self._envelope is not None  # noqa: S101 - set with the first fast span
            resource, scope = self._envelope
            spans = scope + b"".join(fast)
            inner = resource + _SCOPE_SPANS + _varint(len(spans)) + spans
            body = _RESOURCE_SPANS + _varint(len(inner)) + inner
        if others:  # concatenated serialized messages are one merged message
            try:
                body += encode_spans(others).SerializePartialToString()
            except Exception:  # noqa: BLE001 - as above
                encoded, unencodable = _encode_each(others)
                body += encoded
                lost += unencodable
        return body, lost

    def _span(self, span: Span) -> tuple[bytes, bytes, bytes, bytes]:
        """Return tag and length, then the parts of the span's message. Their order has no meaning in protobuf."""
        if span.events or span.links or span.state or span.dropped != _NONE_DROPPED:
            raise UnusualError
        shared = self._shared.get((span.name, span.kind, id(span.constant), id(span.outcome), span.status))
        if shared is None or span.message:
            shared = self._share(span)
        own = span.attributes
        more = b""
        if own:
            if not (span.within_default_limits() and shared.keys.isdisjoint(own)):
                raise UnusualError
            more = b"".join([_attribute(key, value) for key, value in own.items()])
        parent = span.parent
        trace_id, span_id = span.trace_id.to_bytes(16, "big"), span.span_id.to_bytes(8, "big")
        if parent is None:
            head = _ROOT_HEAD(
                b"\x0a\x10", trace_id, b"\x12\x08", span_id, 0x39, span.start, 0x41, span.finish, 0x0185, _LOCAL
            )
        else:
            head = _CHILD_HEAD(
                b"\x0a\x10", trace_id, b"\x12\x08", span_id, b"\x22\x08", parent.span_id.to_bytes(8, "big"),
                0x39, span.start, 0x41, span.finish, 0x0185, _REMOTE if parent.remote else _LOCAL,
            )  # fmt: skip
        return _SPANS + _varint(len(head) + len(shared.encoded) + len(more)), head, shared.encoded, more

    def _share(self, span: Span) -> _Shared:
        """Encode and cache the part that the span shares with others of its name and outcome."""
        if not span.within_default_limits():
            raise UnusualError
        named = WireSpan(name=span.name, kind=span.kind.value + 1).SerializeToString()  # type: ignore[arg-type]
        outcome: Mapping[str, Any] = span.outcome or {}
        if not span.constant.keys().isdisjoint(outcome):
            raise UnusualError
        pairs = [_attribute(key, value) for attributes in (span.constant, outcome) for key, value in attributes.items()]
        encoded = b"".join((named, *pairs, _status(span)))
        shared = _Shared(encoded, frozenset((*span.constant, *outcome)), (span.constant, outcome))
        if not span.message and type(span.constant) is Constant:
            if len(self._shared) >= _MAX_CACHED:
                self._shared.clear()
            self._shared[span.name, span.kind, id(span.constant), id(span.outcome), span.status] = shared
        return shared


def _encodable(span: ReadableSpan) -> ReadableSpan:
    """Return a function's span. Values that OTLP cannot carry are replaced as in a span of a worker."""
    texts = (span.name, span.status.description or "", *(event.name for event in span.events))
    attributes = (
        span.attributes,
        *(event.attributes for event in span.events),
        *(link.attributes for link in span.links),
    )
    if all(map(are_plain, attributes)) and all(text_of(text) is text for text in texts):
        return span
    return worker_spans.unpack(worker_spans.pack(span), span.resource)


def _encode_each(spans: Sequence[ReadableSpan]) -> tuple[bytes, int]:
    """Encode spans one by one. Return also the number of those that could not be encoded."""
    encoded = []
    for span in spans:
        with suppress(Exception):
            encoded.append(encode_spans([span]).SerializePartialToString())
    return b"".join(encoded), len(spans) - len(encoded)


def _envelope(span: ReadableSpan) -> tuple[bytes, bytes]:
    """Return the bytes before the spans: the resource with its tag, and the beginning of the scope's message."""
    resource_spans = encode_spans([span]).resource_spans[0]
    scope_spans = resource_spans.scope_spans[0]
    del resource_spans.scope_spans[:]
    del scope_spans.spans[:]
    return resource_spans.SerializeToString(), scope_spans.SerializeToString()


_encoded_attributes: dict[tuple[str, type, Any], bytes] = {}
"""Cache of encoded attributes. Most attributes repeat."""


def _attribute(key: str, value: Any) -> bytes:
    kind = type(value)
    if kind not in _ENCODERS:
        raise UnusualError
    known = _encoded_attributes.get((key, kind, value))
    if known is not None:
        return known
    if type(key) is not str or not key:
        raise UnusualError
    inner = _ENCODERS[kind](value)
    name = key.encode()
    pair = b"\x0a" + _varint(len(name)) + name + b"\x12" + _varint(len(inner)) + inner
    encoded = b"\x4a" + _varint(len(pair)) + pair
    if len(_encoded_attributes) >= _MAX_CACHED:
        _encoded_attributes.clear()
    if len(encoded) <= _MAX_CACHED_SIZE and kind is not float:  # 0.0 and -0.0 are one key
        _encoded_attributes[key, kind, value] = encoded
    return encoded


def _text(value: str) -> bytes:
    text = value.encode()
    return b"\x0a" + _varint(len(text)) + text


def _integer(value: int) -> bytes:
    if not -_UINT64_RANGE // 2 <= value < _UINT64_RANGE // 2:
        raise UnusualError
    return b"\x18" + _varint(value % _UINT64_RANGE)


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    str: _text,
    int: _integer,
    bool: lambda value: b"\x10\x01" if value else b"\x10\x00",
    float: lambda value: b"\x21" + pack("<d", value),
}
"""Type of a value → its encoder as ``AnyValue``."""


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
