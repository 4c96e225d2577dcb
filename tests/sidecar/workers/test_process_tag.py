"""Process tag: the processes that have it, and those that are killed for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mesh.sidecar.workers import process_tag

TAGGED = """
import os, subprocess, sys, time
from mesh.sidecar.workers import process_tag

print(process_tag.read(os.getpid()))
process_tag.write("12.3")
waiting = [sys.executable, "-c", "print(flush=True); input()"]
made = [
    subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    for env in (None, dict(os.environ), {})
]
for one in made:
    one.stdout.readline()  # exec has replaced the copy of this process
forked = os.fork()
if not forked:
    time.sleep(60)
print(*(repr(process_tag.read(pid)) for pid in (os.getpid(), forked, *(one.pid for one in made))))
os.kill(forked, 9)
for one in made:
    one.communicate()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_who_bears_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAGGED], env={**os.environ, process_tag.VARIABLE: process_tag.FORK_SERVER_TAG},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [process_tag.FORK_SERVER_TAG, "'12.3' '12.3' '12.3' '12.3' ''"]


def test_a_process_that_is_not_there_has_none() -> None:
    assert process_tag.read(2**22 + 1) == ""


@pytest.mark.parametrize(
    ("tag", "live", "ends"),
    [
        ("12.3", ["12.4"], True),
        ("12.3", ["12.3", "12.4"], False),
        ("12.3", [], True),
        ("", ["12.4"], False),
        ("", [], True),
        ("99.3", ["12.4"], False),
        ("99.3", [], True),
        (process_tag.FORK_SERVER_TAG, ["12.4"], False),
        (process_tag.FORK_SERVER_TAG, [], False),
    ],
)
def test_who_has_to_end(tag: str, live: list[str], *, ends: bool) -> None:
    assert process_tag.is_orphan(tag, "12.", live) is ends


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_what_a_function_gives_its_processes_is_no_mark_and_no_harm() -> None:
    waiting = [sys.executable, "-c", "print(flush=True); input()"]
    odd = {**os.environb, process_tag.VARIABLE.encode(): b"\xff"}
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=odd) as made:
        assert made.stdout is not None
        made.stdout.readline()
        assert process_tag.is_orphan(process_tag.read(made.pid), "12.", ["12.3"]) is False
        made.communicate()
