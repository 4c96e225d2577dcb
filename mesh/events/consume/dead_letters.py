"""Dead letters: what was delivered and will not be tried again by itself, kept whole, with the reason beside it. Pure.

A dead letter is the original message on ``dead.<service>.<Method>`` with headers of ours added, so it can be read,
delivered once more or thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mesh.events.broker.message import own_headers

__all__ = ["LEFT_OUT", "Letter", "letter_headers", "original_headers", "read_letter"]

PREFIX = "mesh-dead-"
LEFT_OUT = "mesh-dead-left-out"
"""Header of a letter without its event, which with our headers would be larger than the broker takes."""


@dataclass(frozen=True, slots=True)
class Letter:
    """Why an event is dead.

    Attributes:
        reason: Why it is not tried again.
        code: The code that the last try ended with, or "" if the function was not called.
        error: Its text.
        tries: How often the function was called.
        trace: The trace of the last try, or "".
        consumer: The consumer that it was delivered by.
        method: The path of the method.
        subject: Where the event was published.
        stream: The stream that held it.
        sequence: Its place there.
        time: When it died.
    """

    reason: str
    code: str
    error: str
    tries: int
    trace: str
    consumer: str
    method: str
    subject: str
    stream: str
    sequence: int
    time: datetime


def letter_headers(letter: Letter, original: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of the dead letter: the event's own, and ours. The same event dies once for a consumer."""
    headers = own_headers(original)
    told = {
        "reason": letter.reason,
        "code": letter.code,
        "error": letter.error,
        "tries": str(letter.tries),
        "trace": letter.trace,
        "consumer": letter.consumer,
        "method": letter.method,
        "subject": letter.subject,
        "stream": letter.stream,
        "sequence": str(letter.sequence),
        "time": letter.time.astimezone(UTC).isoformat(timespec="milliseconds"),
    }
    headers.update({f"{PREFIX}{name}": _one_line(value) for name, value in told.items() if value})
    return headers


def read_letter(headers: Mapping[str, str]) -> Letter:
    """Return what the headers of a dead letter say; what is missing is empty."""
    told = {name.lower().removeprefix(PREFIX): value for name, value in headers.items()}
    time = told.get("time")
    return Letter(
        reason=told.get("reason", ""),
        code=told.get("code", ""),
        error=told.get("error", ""),
        tries=int(told.get("tries", "0")),
        trace=told.get("trace", ""),
        consumer=told.get("consumer", ""),
        method=told.get("method", ""),
        subject=told.get("subject", ""),
        stream=told.get("stream", ""),
        sequence=int(told.get("sequence", "0")),
        time=datetime.fromisoformat(time) if time else datetime.fromtimestamp(0, UTC),
    )


def original_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the event's own headers, of those of a dead letter."""
    return {name: value for name, value in own_headers(headers).items() if not name.lower().startswith(PREFIX)}


def _one_line(text: str) -> str:
    """Return a text as a header's value can hold it."""
    return " ".join(text.split())[:1000]
