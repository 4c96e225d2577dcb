"""Process of a component: its environment, its start and its end."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

RUN = """
import resource
from pathlib import Path
from mesh.control.component.process import run

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
assert run(Path("nowhere/mesh.toml"), None, None) == 1
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_a_component_may_have_many_files_open() -> None:
    """macOS gives 256, many a Linux 1024: too few for connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True)
    soft = int(done.stdout.strip("()\n").split(",")[0])
    assert soft >= 10_240 or soft == hard
    assert done.stdout.strip() == str((soft, hard))


SERVE = """
import asyncio, os, signal
from mesh.control.component.process import serve
from mesh.control.readiness import ParentConnection

class Component:
    def __init__(self):  # as a module does that wants Ctrl-C to end its script
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    async def start(self):
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
        return "127.0.0.1:1"

    def reload(self):
        pass

    async def stop(self):
        print("drained")

assert asyncio.run(serve(Component, ParentConnection(None), 1.0)) == 0
"""


def test_a_module_that_gives_a_signal_its_default_does_not_take_the_drain_away() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "drained\n"), done.stderr


LEFT_BEHIND = """
import asyncio, os, signal, threading
from mesh.control.component.process import serve
from mesh.control.readiness import ParentConnection

async def a_thread():
    await asyncio.to_thread(threading.Event().wait)

async def a_task():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

class Component:
    async def start(self):
        self.left = asyncio.create_task({left}())
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
        return "127.0.0.1:1"

    def reload(self):
        pass

    async def stop(self):
        print("drained")
        {fails}

raise SystemExit(asyncio.run(serve(Component, ParentConnection(None), 1.0)))
"""


@pytest.mark.parametrize(("fails", "code"), [("", 0), ("raise ValueError", 1)])
@pytest.mark.parametrize("left", ["a_thread", "a_task"])
def test_what_a_function_leaves_behind_does_not_keep_the_process(left: str, fails: str, code: int) -> None:
    source = LEFT_BEHIND.replace("{left}", left).replace("{fails}", fails)
    done = subprocess.run(
        [sys.executable, "-c", source],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (code, "drained\n"), done.stderr
