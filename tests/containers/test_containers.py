"""The whole walk through docker-compose.yml, where there is an engine to run it."""

from __future__ import annotations

import functools
import subprocess

import pytest
from walk import walk


@functools.cache
def missing() -> str:
    """Return what is missing to run containers here, or ""."""
    for what, command in (("engine", ["docker", "info"]), ("compose", ["docker", "compose", "version"])):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"no container {what} is reachable: {error}"
        if done.returncode:
            return f"no container {what} is reachable: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
    return ""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_walk() -> None:
    if missing():
        pytest.skip(missing())
    walk()
