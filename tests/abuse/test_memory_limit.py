"""The memory limits of the abuse tests hold: a process that takes too much is ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from memory_limit import cgroups, limit_address_space, peak_bytes

GROW = "import sys; print('up', flush=True); sys.stdin.read(1); a = b'a' * (300 * 2**20); print(len(a), flush=True)"


def grow(*words: str, **options: object) -> subprocess.Popen[bytes]:
    """Start a process that waits, and then takes 300 MB."""
    process = subprocess.Popen(
        [sys.executable, "-c", GROW, *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip
    assert process.stdout.readline() == b"up\n"
    return process


def test_a_cgroup_ends_what_takes_too_much(tmp_path: Path) -> None:
    with cgroups(("edge",)) as groups:
        if groups.folder is None:
            pytest.skip("no cgroup can be made here")
        groups.write_site(tmp_path)
        process = grow("mesh", "edge", env={"PYTHONPATH": str(tmp_path)})
        assert groups.members("edge") == {process.pid}
        process.communicate(b"x", timeout=30)
        assert process.returncode == -signal.SIGKILL


def test_without_a_cgroup_the_address_space_is_limited() -> None:
    process = grow()
    assert peak_bytes(process.pid) > 2**20
    limit_address_space({"edge": process.pid})
    _, error = process.communicate(b"x", timeout=30)
    assert (process.returncode, error.splitlines()[-1]) == (1, b"MemoryError")
