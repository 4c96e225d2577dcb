"""Return code of a child process, as text and as it is observed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from mesh.control.supervise.child_process import ChildProcess, exit_text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (137, "exit code 137"),
        (-signal.SIGTERM, "signal SIGTERM"),
        (-signal.SIGSEGV, "signal SIGSEGV"),
        (-60, "signal 60"),
    ],
)
def test_how_it_ended(code: int, words: str) -> None:
    assert exit_text(code) == words


async def test_one_that_ends_in_the_moment_of_a_signal_keeps_its_exit_code() -> None:
    found = set()
    for _ in range(60):
        process = await ChildProcess.start(["/bin/sh", "-c", "exit 3"], dict(os.environ), (), lambda _: None)
        while not process.ended.done():
            process.terminate()
            await asyncio.sleep(0)
        found.add(await process.ended)
    assert found <= {3, -signal.SIGTERM}


def test_the_command_knows_the_ends_of_its_children_where_their_signal_was_ignored() -> None:
    """A parent that ignores SIGCHLD hands that on, and then no exit code can be had (POSIX, wait)."""
    code = """
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from mesh.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print(subprocess.run([sys.executable, "-c", "raise SystemExit(3)"]).returncode)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "3"
