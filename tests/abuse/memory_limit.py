"""Real memory limits for the components of a mesh: a cgroup for each where one can be made, ``RLIMIT_AS`` otherwise."""

from __future__ import annotations

import contextlib
import re
import resource
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

LIMIT_BYTES = 256 * 2**20
"""The memory that a component may use at default settings."""

_SITE = """
import os, sys
from pathlib import Path
words = sys.orig_argv
name = "edge" if "edge" in words else words[words.index("sidecar") + 1] if "sidecar" in words else ""
if name and "mesh" in words:
    (Path({groups!r}) / name / "cgroup.procs").write_text(str(os.getpid()))
"""
"""Module that Python imports before anything else. It moves a component into its cgroup: memory that a process has when
it is moved later stays charged to the old one."""


def _candidates() -> Iterator[tuple[Path, str]]:
    """Yield the folders in which a cgroup may be made, and the name of its limit (versions 1 and 2)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "memory":
                yield Path(f"/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes"
            elif not controllers:
                yield Path(f"/sys/fs/cgroup{path}"), "memory.max"


class Cgroups:
    """Cgroups of the components of one mesh.

    Args:
        names: The components.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.folder: Path | None = None
        self._names = names
        for parent, limit in _candidates():
            made = parent / f"mesh-abuse-{secrets.token_hex(4)}"
            if not (parent / "cgroup.procs").exists():  # an ordinary folder, in which limits would be ordinary files
                continue
            try:
                made.mkdir()
                self.folder = made
                if limit == "memory.max":
                    (made / "cgroup.subtree_control").write_text("+memory")
                for name in names:
                    (made / name).mkdir()
                    (made / name / limit).write_text(str(LIMIT_BYTES))
            except OSError:
                self.remove()
                continue
            return

    def write_site(self, folder: Path) -> None:
        """Write the module that moves the components into their cgroups; ``folder`` is on their PYTHONPATH."""
        (folder / "sitecustomize.py").write_text(_SITE.format(groups=str(self.folder)))

    def members(self, name: str) -> set[int]:
        """Return the processes in the cgroup of a component."""
        assert self.folder is not None
        return {int(line) for line in (self.folder / name / "cgroup.procs").read_text().split()}

    def remove(self) -> None:
        """Remove the cgroups; their processes have ended."""
        if self.folder is not None:
            for name in (*self._names, "."):
                with contextlib.suppress(OSError):
                    (self.folder / name).rmdir()
            self.folder = None


@contextmanager
def cgroups(names: tuple[str, ...]) -> Iterator[Cgroups]:
    """Make the cgroups, if this machine allows it, and remove them at the end."""
    made = Cgroups(names)
    try:
        yield made
    finally:
        made.remove()


def limit_address_space(pids: Mapping[str, int]) -> None:
    """Let running processes grow by as much as is left below the limit now.

    The address space of a process is larger than its memory, by the stacks of its threads and by the arenas of malloc.
    The limit is therefore the present size and the rest of the memory.
    """
    for pid in pids.values():
        status = Path(f"/proc/{pid}/status").read_text()
        virtual, resident = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) * 1024 for name in ("VmSize", "VmRSS"))
        limit = virtual + LIMIT_BYTES - resident
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


def peak_bytes(pid: int) -> int:
    """Return the peak of the resident memory of a process (``VmHWM``)."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


def forget_peak(pid: int) -> None:
    """Let the peak of the resident memory of a process begin at its present size (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
