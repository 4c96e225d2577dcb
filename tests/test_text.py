"""Text output: terminals with ASCII only, closed or full streams, and lone surrogates."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.control.supervise.log_output import LogOutput
from mesh.telemetry.logs import JsonFormatter
from mesh.text import json_for, utf8

ANY = st.text(st.characters(), max_size=20)  # halves of surrogate pairs too
ENCODINGS = st.sampled_from(["ascii", "latin-1", "utf-8", "cp1252", "koi8-r"])


def printed(*lines: str, **environment: str) -> bytes:
    """Return what a process prints after ``prepare_output``."""
    script = "import sys\nfrom mesh.text import prepare_output\nprepare_output()\n" + "\n".join(lines)
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True
    )
    return done.stdout


def test_what_a_terminal_lacks_is_replaced() -> None:
    assert printed("print('a │ ü → \\ud800 日')", PYTHONIOENCODING="ascii") == b"a | ? -> ? ?\n"
    assert printed("print('a │ ü \\ud800')", PYTHONIOENCODING="latin-1") == b"a | \xfc ?\n"
    assert printed("print('│ ü \\ud800')", PYTHONIOENCODING="utf-8") == "│ ü ?\n".encode()


def test_an_output_that_was_closed_leads_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "file"
    script = (
        "import sys\nfrom mesh.text import prepare_output\nprepare_output()\n"
        f"file = open({str(file)!r}, 'w')\nprint('lost', flush=True)\nprint('lost', file=sys.stderr, flush=True)\n"
    )
    closed = 'exec "$0" -c "$1" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", closed, sys.executable, script], check=True, timeout=30)
    assert file.read_text() == ""


@given(ANY, ENCODINGS)
def test_json_is_whole_in_every_encoding(text: str, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    written = json_for(stream, {"text": text})
    written.encode(encoding)
    assert json.loads(written) == {"text": text}


@given(ANY, ENCODINGS)
def test_a_log_line_is_json_in_every_encoding(text: str, encoding: str) -> None:
    import logging

    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("a", stream))
    handler.handle(logging.LogRecord("a", logging.INFO, "", 0, "%s", (text,), None))
    assert utf8(json.loads(raw.getvalue().decode(encoding))["message"]) == utf8(text)


@given(ANY, ENCODINGS, st.booleans())
def test_the_console_shows_every_line(text: str, encoding: str, raw: bool) -> None:  # noqa: FBT001
    bytes_ = io.BytesIO()
    stream = io.TextIOWrapper(bytes_, encoding=encoding, errors="mesh.plain", newline="")
    console = LogOutput(stream, ["a"], raw=raw)
    console.component_line("a", json.dumps({"message": text}, ensure_ascii=False))
    shown = bytes_.getvalue().decode(encoding)
    if raw:
        assert utf8(json.loads(shown)["message"]) == utf8(text)
    else:
        assert shown.startswith("a")
    console.component_line("a", text)
    assert bytes_.getvalue().decode(encoding) != shown


def test_a_full_or_closed_output_does_not_end_the_console() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w", buffering=1) as full:  # noqa: PTH123
        console = LogOutput(full, ["a"])
        console.component_line("a", "text")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
