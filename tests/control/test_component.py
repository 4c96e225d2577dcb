"""What the process of a component is given before anything runs in it."""

from __future__ import annotations

import resource
import subprocess
import sys

RUN = """
import resource
from pathlib import Path
from mesh.control.component import run

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
