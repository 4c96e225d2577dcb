"""Preload plan: the modules that the fork server imports before the first fork.

A scratch process (``mesh.sidecar.workers.import_probe``) imports the service's module as a worker would. It records for
each import which modules it imports in turn, and whether it left threads or sockets behind. The plan has every module
from outside of the project, and the generated stubs (a changed contract restarts the sidecar), but not

- the project's own code: each worker runs it anew, so that a reload needs only new workers;
- modules that start threads or open sockets, as gRPC's core does with its first channel: a fork would copy half of
  them. The modules that such a module imports are preloaded one by one instead.

The plan is stored in the state folder until something changes that it depends on: the interpreter, the search path,
installed packages, the imported files of the project. Only speed depends on it: a worker imports what is missing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import msgspec

from mesh.sidecar.workers.import_probe import PreloadPlan, ProbeRequest, ProbeResult, from_json, to_json

__all__ = ["PreloadPlan", "find"]

PROBE_TIMEOUT = 60.0
"""Seconds that the scratch process may take."""


class _PlanFile(msgspec.Struct, frozen=True):
    """The file in the state folder: the plan, and the fingerprint of what it depends on."""

    fingerprint: str
    files: dict[str, int]
    plan: PreloadPlan


def find(module: str, *, root: Path, stubs: Path, keep: Path) -> PreloadPlan:
    """Return the plan for a service: the stored one, if it is current, or that of a new probe.

    A probe takes as long as the import of the module.

    Args:
        module: The module of the service's functions.
        root: The project: the folder of mesh.toml.
        stubs: The folder of the generated stubs.
        keep: The file that the plan is stored in.

    Returns:
        The plan. If the module cannot be imported at all, the plan is empty and ``failed`` gives the reason.
    """
    request = ProbeRequest(module, tuple(sys.path), str(root), str(stubs))
    fingerprint = _fingerprint(request)
    with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
        stored = from_json(keep.read_bytes(), _PlanFile)
        if stored.fingerprint == fingerprint and stored.files == _times(stored.files):
            return stored.plan
    result = _run_probe(request)
    if not result.plan.failed:
        with contextlib.suppress(OSError):  # a container may have no writable folder; its next start probes again
            keep.parent.mkdir(parents=True, exist_ok=True)
            fresh = keep.with_name(f"{keep.name}.{os.getpid()}")
            fingerprint = _fingerprint(request)  # the import itself may have created a __pycache__ in a folder
            fresh.write_bytes(to_json(_PlanFile(fingerprint, _times(result.files), result.plan)))
            fresh.replace(keep)
    return result.plan


def _fingerprint(request: ProbeRequest) -> str:
    """Return a digest of what the plan depends on besides the project's files.

    An installation adds or removes a folder ``NAME-VERSION.dist-info``, so the folder around it has a new modification
    time. The stubs are replaced as a whole.
    """
    folders = [*(folder for folder in request.path if folder.endswith("-packages")), request.stubs]
    return sha256(to_json([sys.version, sys.executable, request, _times(folders)])).hexdigest()


def _times(files: Iterable[str]) -> dict[str, int]:
    """Return file → modification time in nanoseconds; missing files are left out."""
    found = {}
    for file in files:
        with contextlib.suppress(OSError):
            found[file] = Path(file).stat().st_mtime_ns
    return found


def _run_probe(request: ProbeRequest) -> ProbeResult:
    with tempfile.TemporaryFile() as file:
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter
                [sys.executable, "-P", "-m", "mesh.sidecar.workers.import_probe", str(file.fileno())],
                input=to_json(request),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(file.fileno(),),
                timeout=PROBE_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _failed(f"its import took longer than {PROBE_TIMEOUT:g} s")
        file.seek(0)
        text = file.read()
    if not text:
        return _failed(f"the process that imported it ended with {done.returncode}")
    return from_json(text, ProbeResult)


def _failed(reason: str) -> ProbeResult:
    return ProbeResult(PreloadPlan((), {}, reason), ())
