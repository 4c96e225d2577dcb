"""Terminal output of ``mesh up``: each line with the name of the component that wrote it.

A component logs JSON, one object a line. This module formats it as text, unless the user asked for JSON. A line that is
no JSON (a traceback, a ``print``) is shown unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, TextIO

from mesh.text import can_encode

__all__ = ["SUPERVISOR", "LogOutput", "render"]

SUPERVISOR = "mesh"
"""Name in front of the supervisor's lines."""

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_RESET = "\x1b[0m"
_LEVELS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_HIDDEN = frozenset({"time", "level", "logger", "message", "service", "trace_id", "span_id", "exception"})
"""Keys of a log record (``mesh.telemetry.logs``) that are not shown as ``key=value``."""
_TRACE_ID = slice(8)
"""Part of a trace id that is enough for ``mesh trace``."""
_TIME_OF_DAY = slice(11, 23)
"""``21:14:38.123`` in ``2026-11-21T21:14:38.123456Z``."""


class LogOutput:
    """Writes lines to one stream, each with a name in front; a closed or full stream raises nothing.

    Args:
        stream: The stream, usually standard output.
        names: The components, for alignment and colours.
        raw: Show JSON lines unchanged (``--logs json``); the supervisor's lines become JSON too.
    """

    def __init__(self, stream: TextIO, names: Iterable[str], *, raw: bool = False) -> None:
        self._stream = stream
        self._raw = raw
        self.colour = stream.isatty() and not raw
        known = [*names, SUPERVISOR]
        width = max(map(len, known))
        self._heads = {
            name: self._paint(f"{name:<{width}} │ ", _COLOURS[at % len(_COLOURS)]) for at, name in enumerate(known)
        }

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}{_RESET}" if self.colour else text

    def component_line(self, name: str, text: str) -> None:
        """Show a line of component ``name``."""
        printed, text = _split_printed(text)
        if printed:
            self.component_line(name, printed)
        if self._raw:
            self.write(self._escaped(text) if text.startswith("{") else json.dumps({"service": name, "message": text}))
            return
        record = _record(text)
        for part in [text] if record is None else render(record, colour=self.colour):
            self.write(self._heads[name] + part)

    def _escaped(self, line: str) -> str:
        """Return a line of JSON with escapes for characters that the stream cannot encode."""
        if not can_encode(self._stream, line):
            with suppress(ValueError, RecursionError):
                return json.dumps(json.loads(line))
        return line

    def supervisor_line(self, text: str) -> None:
        """Show a line of the supervisor; a text of several lines is several of them."""
        for part in text.splitlines():
            self.write(
                json.dumps({"service": SUPERVISOR, "message": part}) if self._raw else self._heads[SUPERVISOR] + part
            )

    def block(self, text: str) -> None:
        """Show a text without names in front, such as a table."""
        if self._raw:
            self.supervisor_line(text)
        else:
            self.write(f"\n{text}\n")

    def write(self, text: str) -> None:
        """Show one line unchanged."""
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the reader has closed the stream, or the disk is full; the mesh continues
            return


def _split_printed(text: str) -> tuple[str, str]:
    """Return text that was printed without a line end, and the log record that follows it in the same line."""
    at = text.find('{"time":"', 1)
    return (text[:at], text[at:]) if at > 0 and _record(text[at:]) is not None else ("", text)


def _record(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "message" in record else None


def render(record: Mapping[str, Any], *, colour: bool = False) -> list[str]:
    """Return the lines of one log record: time, level, message, other fields; the exception's text below."""
    level = str(record.get("level", ""))
    shown = f"{level:<7}" if level not in ("", "INFO") else ""
    if colour and level in _LEVELS:
        shown = f"{_LEVELS[level]}{shown}{_RESET}"
    others = [f"{key}={_short(value)}" for key, value in record.items() if key not in _HIDDEN]
    if "trace_id" in record:
        others.append(f"trace={str(record['trace_id'])[_TRACE_ID]}")
    message, *more = str(record["message"]).splitlines() or [""]
    parts = (str(record.get("time", ""))[_TIME_OF_DAY], shown, message, *others)
    return [" ".join(part for part in parts if part), *more, *str(record.get("exception", "")).splitlines()]


def _short(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() and " " not in value else json.dumps(value)
