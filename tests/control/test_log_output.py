"""Output of ``mesh up``: the lines of a component."""

from __future__ import annotations

import io
import json

import pytest

from mesh.control.supervise.log_output import LogOutput

RECORD = json.dumps(
    {"time": "2026-11-21T21:14:38.123456Z", "level": "INFO", "logger": "a", "message": "said", "service": "a"},
    separators=(",", ":"),
)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (RECORD, ["21:14:38.123 said"]),
        ("printed", ["printed"]),
        (f"printed {RECORD}", ["printed ", "21:14:38.123 said"]),
        (f"printed {RECORD} more", [f"printed {RECORD} more"]),
        ('printed {"time":"', ['printed {"time":"']),
    ],
)
def test_a_record_is_read_also_after_what_was_printed_without_an_end(line: str, shown: list[str]) -> None:
    out = io.StringIO()
    LogOutput(out, ["a"]).component_line("a", line)
    assert out.getvalue().splitlines() == [f"a    │ {part}" for part in shown]


def test_as_json_every_line_is_an_object() -> None:
    out = io.StringIO()
    LogOutput(out, ["a"], raw=True).component_line("a", f"printed {RECORD}")
    assert out.getvalue().splitlines() == ['{"service": "a", "message": "printed "}', RECORD]
