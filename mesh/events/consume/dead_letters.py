"""Dead letters: events that are not retried by themselves, stored unchanged with the reason in headers. Pure.

A dead letter is the original message on ``dead.<service>.<Method>`` with the mesh's headers added, so it can be read,
redriven or discarded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mesh.events.broker.message import own_headers

__all__ = ["LEFT_OUT", "DeadLetter", "dead_letter_headers", "original_headers", "read_dead_letter"]

PREFIX = "mesh-dead-"
LEFT_OUT = "mesh-dead-left-out"
"""Header of a dead letter without its event, which would be too large for the broker with the added headers."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Reason and origin of a dead letter.

    Attributes:
        reason: The reason for giving up.
        code: The code of the last attempt, or "" if the function was not called.
        error: The text of its error.
        attempts: Number of attempts.
        trace: The trace id of the last attempt, or "".
        consumer: Name of the consumer that delivered the event.
        method: Path of the method.
        subject: The subject that the event was published on.
        stream: The stream that held it.
        sequence: Its sequence there.
        time: Time at which it became a dead letter.
    """

    reason: str
    code: str
    error: str
    attempts: int
    trace: str
    consumer: str
    method: str
    subject: str
    stream: str
    sequence: int
    time: datetime


def dead_letter_headers(letter: DeadLetter, original: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a dead letter: the event's own, and those with the reason."""
    headers = own_headers(original)
    values = {
        "reason": letter.reason,
        "code": letter.code,
        "error": letter.error,
        "tries": str(letter.attempts),
        "trace": letter.trace,
        "consumer": letter.consumer,
        "method": letter.method,
        "subject": letter.subject,
        "stream": letter.stream,
        "sequence": str(letter.sequence),
        "time": letter.time.astimezone(UTC).isoformat(timespec="milliseconds"),
    }
    headers.update({f"{PREFIX}{name}": _one_line(value) for name, value in values.items() if value})
    return headers


def read_dead_letter(headers: Mapping[str, str]) -> DeadLetter:
    """Return the values in the headers of a dead letter; a missing value is empty."""
    values = {name.lower().removeprefix(PREFIX): value for name, value in headers.items()}
    time = values.get("time")
    return DeadLetter(
        reason=values.get("reason", ""),
        code=values.get("code", ""),
        error=values.get("error", ""),
        attempts=int(values.get("tries", "0")),
        trace=values.get("trace", ""),
        consumer=values.get("consumer", ""),
        method=values.get("method", ""),
        subject=values.get("subject", ""),
        stream=values.get("stream", ""),
        sequence=int(values.get("sequence", "0")),
        time=datetime.fromisoformat(time) if time else datetime.fromtimestamp(0, UTC),
    )


def original_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the event's own headers among those of a dead letter."""
    return {name: value for name, value in own_headers(headers).items() if not name.lower().startswith(PREFIX)}


def _one_line(text: str) -> str:
    """Return a text as one line of at most 1,000 characters, as a header's value can hold it."""
    return " ".join(text.split())[:1000]
