"""What the user of ``mesh up`` sees: every line with the name of the component that said it.

A component logs JSON, one object a line; here it becomes a line to read, unless the user asked for the JSON. A line
that is no JSON (a traceback, a ``print``) is shown as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, TextIO

from mesh.text import carries

__all__ = ["OWN", "Console", "render"]

OWN = "mesh"
"""The name in front of the supervisor's own lines."""

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_RESET = "\x1b[0m"
_LEVELS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_HIDDEN = frozenset({"time", "level", "logger", "message", "service", "trace_id", "span_id", "exception"})
"""Keys of a log record (``mesh.telemetry.logs``) that are not shown as ``key=value``."""
_TRACE_ID = slice(8)
"""As much of a trace id as ``mesh trace`` needs."""
_CLOCK = slice(11, 23)
"""``21:14:38.123`` in ``2026-11-21T21:14:38.123456Z``."""


class Console:
    """Writes lines to one stream, each with a name in front; never raises because the stream is gone or full.

    Args:
        stream: Where to.
        names: The components, for alignment and colours.
        raw: Show JSON lines as they are (``--logs json``); the supervisor's own lines become JSON too.
    """

    def __init__(self, stream: TextIO, names: Iterable[str], *, raw: bool = False) -> None:
        self._stream = stream
        self._raw = raw
        self.colour = stream.isatty() and not raw
        known = [*names, OWN]
        width = max(map(len, known))
        self._heads = {
            name: self._paint(f"{name:<{width}} │ ", _COLOURS[at % len(_COLOURS)]) for at, name in enumerate(known)
        }

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}{_RESET}" if self.colour else text

    def line(self, name: str, text: str) -> None:
        """Show a line that component ``name`` wrote."""
        printed, text = _parted(text)
        if printed:
            self.line(name, printed)
        if self._raw:
            self.write(self._carried(text) if text.startswith("{") else json.dumps({"service": name, "message": text}))
            return
        record = _record(text)
        for part in [text] if record is None else render(record, colour=self.colour):
            self.write(self._heads[name] + part)

    def _carried(self, line: str) -> str:
        """Return a line of JSON with escapes for what the stream lacks."""
        if not carries(self._stream, line):
            with suppress(ValueError):
                return json.dumps(json.loads(line))
        return line

    def say(self, text: str) -> None:
        """Show a line of the supervisor's own."""
        for part in text.splitlines():
            self.write(json.dumps({"service": OWN, "message": part}) if self._raw else self._heads[OWN] + part)

    def block(self, text: str) -> None:
        """Show a text without names in front: the table."""
        if self._raw:
            self.say(text)
        else:
            self.write(f"\n{text}\n")

    def write(self, text: str) -> None:
        """Show one line as it is."""
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # whoever read us has closed, or the disk is full; the mesh runs on
            return


def _parted(text: str) -> tuple[str, str]:
    """Return what was printed without the end of a line, and the log record that follows it in the same line."""
    at = text.find('{"time":"', 1)
    return (text[:at], text[at:]) if at > 0 and _record(text[at:]) is not None else ("", text)


def _record(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "message" in record else None


def render(record: Mapping[str, Any], *, colour: bool = False) -> list[str]:
    """Return the lines of one log record: time, level, message, other fields, and the exception's text below."""
    level = str(record.get("level", ""))
    shown = f"{level:<7}" if level not in ("", "INFO") else ""
    if colour and level in _LEVELS:
        shown = f"{_LEVELS[level]}{shown}{_RESET}"
    others = [f"{key}={_short(value)}" for key, value in record.items() if key not in _HIDDEN]
    if "trace_id" in record:
        others.append(f"trace={str(record['trace_id'])[_TRACE_ID]}")
    message, *more = str(record["message"]).splitlines() or [""]
    parts = (str(record.get("time", ""))[_CLOCK], shown, message, *others)
    return [" ".join(part for part in parts if part), *more, *str(record.get("exception", "")).splitlines()]


def _short(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() and " " not in value else json.dumps(value)
