"""Content negotiation: ``Accept``, ``Accept-Encoding`` and system parameters (``$alt``, ``$prettyPrint``). Pure.

Sources: RFC 9110, 12.4.2 (quality values), 12.5.1 and 12.5.3; https://cloud.google.com/apis/docs/system-parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from urllib.parse import parse_qsl

from mesh.errors import InvalidArgument
from mesh.media_types import EVENT_STREAM, JSON, NDJSON, PROTOBUF

__all__ = ["NO_PARAMETERS", "Form", "SystemParameters", "choose", "content_coding", "form_of", "system_parameters"]


class Form(Enum):
    """Format in which messages are written."""

    JSON = JSON
    """JSON; a stream is one array."""
    LINES = NDJSON
    """JSON, one message a line."""
    EVENTS = EVENT_STREAM
    """Server-Sent Events, each with the JSON of one message."""
    PROTOBUF = PROTOBUF
    """The serialized message."""
    MEDIA = "media"
    """The bytes of a ``google.api.HttpBody``, with the media type that it names."""


_MEDIA_TYPES = {
    JSON: Form.JSON,
    NDJSON: Form.LINES,
    "application/ndjson": Form.LINES,
    "application/jsonl": Form.LINES,
    "application/x-jsonlines": Form.LINES,
    EVENT_STREAM: Form.EVENTS,
    PROTOBUF: Form.PROTOBUF,
    "application/protobuf": Form.PROTOBUF,
}
"""Every media type that names a form, aliases included."""

_ALTS = {"json": Form.JSON, "proto": Form.PROTOBUF, "media": Form.MEDIA, "sse": Form.EVENTS}

CACHED_VALUES = 512
"""Header values and queries whose meaning is cached."""


@dataclass(frozen=True, slots=True)
class SystemParameters:
    """The system parameters of a query.

    Attributes:
        form: ``$alt``; None if it is absent.
        numbers: ``enum-encoding=int``: enums as numbers.
        pretty: ``$prettyPrint``: JSON over several lines.
    """

    form: Form | None = None
    numbers: bool = False
    pretty: bool = False


NO_PARAMETERS = SystemParameters()


def system_parameters(query: bytes) -> SystemParameters:
    """Return the system parameters of a raw query.

    Raises:
        InvalidArgument: The value of one is unknown.
    """
    return _parse(query) if b"$" in query or b"%24" in query else NO_PARAMETERS


@lru_cache(CACHED_VALUES)
def _parse(query: bytes) -> SystemParameters:
    form, numbers, pretty = None, False, False
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name == "$alt":
            alt, _, rest = value.replace(" ", "").lower().partition(";")
            form = _ALTS.get(alt)
            if form is None or rest not in ("", "enum-encoding=int", "enum-encoding=string"):
                raise _invalid(name, "is one of json, json;enum-encoding=int, proto, media, sse")
            numbers = rest == "enum-encoding=int"
        elif name == "$prettyPrint":
            if value.lower() not in ("", "true", "false", "1", "0"):
                raise _invalid(name, "is true or false")
            pretty = value.lower() not in ("false", "0")
    return SystemParameters(form, numbers, pretty)


def _invalid(name: str, text: str) -> InvalidArgument:
    return InvalidArgument(f"query parameter {name!r}: {text}", violations={name: text})


def form_of(media_type: str) -> Form | None:
    """Return the form that a media type names, or None."""
    return _MEDIA_TYPES.get(media_type)


def choose(accept: bytes, offered: tuple[Form, ...]) -> tuple[Form, str] | None:
    """Return the form that the client prefers and the media type by which it named it; None if it accepts none.

    Args:
        accept: The ``Accept`` header; empty if there is none, which accepts anything.
        offered: The forms that the route has, the default first. Equal qualities are decided by this order.
    """
    if not accept or accept == b"*/*":
        return offered[0], offered[0].value
    return _choose(accept, offered)


@lru_cache(CACHED_VALUES)
def _choose(accept: bytes, offered: tuple[Form, ...]) -> tuple[Form, str] | None:
    ranges = _ranges(accept)
    best: tuple[Form, str] | None = None
    best_quality = 0.0
    for form in offered:
        for name, meaning in _MEDIA_TYPES.items():
            if meaning is not form:
                continue
            # An alias is used only if the client names it.
            if name != form.value and name not in ranges:
                continue
            quality = _quality(ranges, name)
            if quality > best_quality:
                best, best_quality = (form, name), quality
    return best


def _quality(ranges: dict[str, float], name: str) -> float:
    """Return the quality of a media type: that of the most specific range that contains it."""
    for at in (name, name.partition("/")[0] + "/*", "*/*"):
        if at in ranges:
            return ranges[at]
    return 0.0


def _ranges(value: bytes) -> dict[str, float]:
    """Return the listed values with their qualities. Malformed elements and parameters other than ``q`` are ignored."""
    found: dict[str, float] = {}
    for part in value.decode("latin-1").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, text = parameter.partition("=")
            if key.strip() == "q":
                try:
                    quality = float(text)
                except ValueError:
                    quality = 0.0
        if name and 0.0 <= quality <= 1.0:
            found[name] = max(quality, found.get(name, 0.0))
    return found


def content_coding(accept: bytes | None, offered: tuple[str, ...]) -> str:
    """Return the content coding for an ``Accept-Encoding``; ``""`` for none (RFC 9110, 12.5.3).

    Args:
        accept: The header; None if there is none, which accepts no coding.
        offered: The codings of the edge, the best first.
    """
    return _content_coding(accept, offered) if accept else ""


@lru_cache(CACHED_VALUES)
def _content_coding(accept: bytes, offered: tuple[str, ...]) -> str:
    ranges = _ranges(accept)
    rest = ranges.get("*", 0.0)
    qualities = {name: ranges.get(name, rest) for name in offered}
    if "x-gzip" in ranges and "gzip" in qualities:
        qualities["gzip"] = max(qualities["gzip"], ranges["x-gzip"])
    best = max(offered, key=lambda name: qualities[name])
    return best if qualities[best] > 0.0 and qualities[best] >= ranges.get("identity", 0.0) else ""
