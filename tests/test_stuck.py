"""A test that hangs on uvloop ends, and its name and the line where it waits are told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HANGS = """
    import asyncio
    import uvloop

    async def inner():
        await asyncio.Event().wait()

    def test_hangs():
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(inner())
"""


def test_a_test_that_hangs_says_where(tmp_path: Path) -> None:
    lines = "\n".join(line[4:] for line in HANGS.splitlines())
    (tmp_path / "conftest.py").write_text("from stuck import pytest_configure, pytest_timeout_set_timer\n")
    (tmp_path / "test_it.py").write_text(lines)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {Path(__file__).parent}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--timeout=1", "-p", "pytest_timeout", "."],
        cwd=tmp_path, env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "test_it.py::test_hangs has not ended within 1 s" in done.stderr
    assert "await asyncio.Event().wait()" in done.stderr
