"""Text rendering of a trace as a tree, for a terminal. Pure.

A span whose parent is missing is a root of its own and is marked so. Clocks that differ between machines move the start
of a span, never its place in the tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

__all__ = ["render"]

_MIN_NAME_WIDTH = 20
"""Columns of a span's name, however narrow the terminal is."""
_NANOSECONDS_PER_MILLISECOND = 1e6
_STATUS_WIDTH = 20
"""Columns reserved for the status. Its message is cut first."""
_GAP = "  "


def render(trace: Mapping[str, Any], width: int = 100) -> str:
    """Return the lines of a trace.

    Args:
        trace: A result of ``Store.trace``: ``trace_id`` and ``spans`` (``span_id``, ``parent_id``, ``name``,
            ``service``, ``start``, ``end`` in Unix nanoseconds, ``error``, ``message``, ``attributes``), and the
            summaries of linked traces, ``from`` and ``to``.
        width: Columns of the terminal. Names are cut to fit.
    """
    spans: Sequence[Mapping[str, Any]] = trace["spans"]
    if not spans:
        return f"trace {trace['trace_id']}  no spans"
    begin = min(span["start"] for span in spans)
    end = max(max(span["end"], span["start"]) for span in spans)
    when = datetime.fromtimestamp(begin // 10**9, UTC).isoformat().replace("+00:00", "Z")
    rows = [_row(branch, span, begin) for branch, span in _walk(spans)]
    name_width, service_width, start_width, took_width = (max(len(row[column]) for row in rows) for column in range(4))
    rest = service_width + start_width + took_width + 4 * len(_GAP)
    name_width = min(name_width, max(_MIN_NAME_WIDTH, width - rest - _STATUS_WIDTH))
    lines = [f"trace {trace['trace_id']}  {when}  {_milliseconds(end - begin)}"]
    for name, service, start, took, ending in rows:
        columns = (
            _cut(name, name_width).ljust(name_width),
            service.ljust(service_width),
            start.rjust(start_width),
            took.rjust(took_width),
            ending,
        )
        lines.append(_cut(_GAP.join(columns).rstrip(), width))
    for word, key in (("came from", "from"), ("led to   ", "to")):
        for other in trace.get(key, ()):
            what = f"{_clean(other['name'])} ({_clean(other['service'])})"
            failed = f"{_GAP}✗" if other["error"] else ""
            lines.append(_cut(f"{word}{_GAP}{other['trace_id']}{_GAP}{what}{failed}", width))
    return "\n".join(lines)


def _walk(spans: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return every span once, parents before children, with the branches drawn before it."""
    by_id = {span["span_id"]: span for span in spans}
    children: dict[str | None, list[Mapping[str, Any]]] = {}
    for span in sorted(by_id.values(), key=lambda one: (one["start"], one["span_id"])):
        parent = span["parent_id"] if span["parent_id"] in by_id else None
        children.setdefault(parent, []).append(span)
    found: list[tuple[str, Mapping[str, Any]]] = []
    seen: set[str] = set()

    def below(root: Mapping[str, Any]) -> None:
        stack = [("", "", root)]
        while stack:  # a trace may be deeper than Python's stack
            branch, indent, span = stack.pop()
            if span["span_id"] in seen:
                continue
            seen.add(span["span_id"])
            found.append((branch, span))
            inner = children.get(span["span_id"], [])
            for at, child in reversed(list(enumerate(inner))):
                last = at == len(inner) - 1
                stack.append((indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  "), child))

    for root in children.get(None, []):
        below(root)
    for span in by_id.values():  # the rest are cycles of parents, which no valid trace has
        if span["span_id"] not in seen:
            below(span)
    return found


def _row(branch: str, span: Mapping[str, Any], begin: int) -> tuple[str, str, str, str, str]:
    orphan = " (parent not received)" if not branch and span["parent_id"] else ""
    return (
        branch + _clean(span["name"]) + orphan,
        _clean(span["service"]),
        _milliseconds(span["start"] - begin),
        _milliseconds(max(0, span["end"] - span["start"])),
        _ending(span),
    )


def _ending(span: Mapping[str, Any]) -> str:
    attributes = span["attributes"]
    status = attributes.get("http.response.status_code") or attributes.get("rpc.response.status_code") or ""
    if not span["error"]:
        return _clean(str(status))
    message = _clean(span["message"])
    return " ".join(part for part in ("✗", _clean(str(status)), message) if part)


def _milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / _NANOSECONDS_PER_MILLISECOND:.1f} ms"


def _clean(text: str) -> str:
    """Return the text on one line, without control characters."""
    return "".join(char if char.isprintable() else " " for char in text).strip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
