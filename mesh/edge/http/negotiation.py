"""What form an answer has: ``Accept``, ``Accept-Encoding`` and system parameters (``$alt``, ``$prettyPrint``). Pure.

Sources: RFC 9110, 12.4.2 (quality values), 12.5.1 and 12.5.3; https://cloud.google.com/apis/docs/system-parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from urllib.parse import parse_qsl

from mesh.errors import InvalidArgument

__all__ = [
    "EVENTS",
    "JSON",
    "LINES",
    "NOTHING",
    "PROTOBUF",
    "Form",
    "Wish",
    "choose",
    "coding",
    "form_of",
    "wish",
]

JSON = "application/json"
LINES = "application/x-ndjson"
EVENTS = "text/event-stream"
PROTOBUF = "application/x-protobuf"


class Form(Enum):
    """How messages are written."""

    JSON = JSON
    """JSON; a stream is one array."""
    LINES = LINES
    """JSON, one message a line."""
    EVENTS = EVENTS
    """Server-Sent Events, each with the JSON of one message."""
    PROTOBUF = PROTOBUF
    """The serialized message."""
    MEDIA = "media"
    """The bytes of a ``google.api.HttpBody``, of the type that it names."""


_NAMES = {
    JSON: Form.JSON,
    LINES: Form.LINES,
    "application/ndjson": Form.LINES,
    "application/jsonl": Form.LINES,
    "application/x-jsonlines": Form.LINES,
    EVENTS: Form.EVENTS,
    PROTOBUF: Form.PROTOBUF,
    "application/protobuf": Form.PROTOBUF,
}
"""Every media type that stands for a form."""

_ALTS = {"json": Form.JSON, "proto": Form.PROTOBUF, "media": Form.MEDIA, "sse": Form.EVENTS}

KNOWN = 512
"""Header values whose meaning is remembered."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the system parameters ask for.

    Attributes:
        form: ``$alt``; None if it is not there.
        numbers: ``enum-encoding=int``: enums as numbers.
        pretty: ``$prettyPrint``: JSON over several lines.
    """

    form: Form | None = None
    numbers: bool = False
    pretty: bool = False


NOTHING = Wish()
"""The wish of a request without system parameters."""


def wish(query: bytes) -> Wish:
    """Return what the system parameters of a raw query ask for.

    Raises:
        InvalidArgument: The value of one is unknown.
    """
    return _wish(query) if b"$" in query or b"%24" in query else NOTHING


@lru_cache(KNOWN)
def _wish(query: bytes) -> Wish:
    form, numbers, pretty = None, False, False
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name == "$alt":
            alt, _, rest = value.replace(" ", "").lower().partition(";")
            form = _ALTS.get(alt)
            if form is None or rest not in ("", "enum-encoding=int", "enum-encoding=string"):
                raise _wrong(name, "is one of json, json;enum-encoding=int, proto, media, sse")
            numbers = rest == "enum-encoding=int"
        elif name == "$prettyPrint":
            if value.lower() not in ("", "true", "false", "1", "0"):
                raise _wrong(name, "is true or false")
            pretty = value.lower() not in ("false", "0")
    return Wish(form, numbers, pretty)


def _wrong(name: str, text: str) -> InvalidArgument:
    return InvalidArgument(f"query parameter {name!r}: {text}", violations={name: text})


def form_of(kind: str) -> Form | None:
    """Return the form of a media type, or None."""
    return _NAMES.get(kind)


def choose(accept: bytes, offered: tuple[Form, ...]) -> tuple[Form, str] | None:
    """Return the form that the client likes best, with the name by which it asked for it; None if it takes none.

    Args:
        accept: Its ``Accept``; empty for none: anything.
        offered: What there is, the default first. Equal wishes are decided by this order.
    """
    if not accept or accept == b"*/*":
        return offered[0], offered[0].value
    return _choose(accept, offered)


@lru_cache(KNOWN)
def _choose(accept: bytes, offered: tuple[Form, ...]) -> tuple[Form, str] | None:
    ranges = _ranges(accept)
    best: tuple[Form, str] | None = None
    most = 0.0
    for form in offered:
        for name, meaning in _NAMES.items():
            if meaning is not form:
                continue
            # An alias is only for those who ask for it.
            if name != form.value and name not in ranges:
                continue
            quality = _quality(ranges, name)
            if quality > most:
                best, most = (form, name), quality
    return best


def _quality(ranges: dict[str, float], name: str) -> float:
    """Return the quality of a media type: of the most specific range that holds it."""
    for at in (name, name.partition("/")[0] + "/*", "*/*"):
        if at in ranges:
            return ranges[at]
    return 0.0


def _ranges(value: bytes) -> dict[str, float]:
    """Return what is listed, with its quality; parameters other than ``q`` are passed over, nonsense as well."""
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


def coding(accept: bytes | None, offered: tuple[str, ...]) -> str:
    """Return the content coding for an ``Accept-Encoding``; ``""`` for none (RFC 9110, 12.5.3).

    Args:
        accept: The header; None for none: nothing was asked for.
        offered: What there is, the best first.
    """
    return _coding(accept, offered) if accept else ""


@lru_cache(KNOWN)
def _coding(accept: bytes, offered: tuple[str, ...]) -> str:
    ranges = _ranges(accept)
    rest = ranges.get("*", 0.0)
    qualities = {name: ranges.get(name, rest) for name in offered}
    if "x-gzip" in ranges and "gzip" in qualities:
        qualities["gzip"] = max(qualities["gzip"], ranges["x-gzip"])
    best = max(offered, key=lambda name: qualities[name])
    return best if qualities[best] > 0.0 and qualities[best] >= ranges.get("identity", 0.0) else ""
