"""What the fork server imports before the first fork, found by importing a service's module once and watching.

A scratch process (``mesh.sidecar.workers.import_probe``) imports the module as a worker would, and notes of each import
how long it took, who asked for it, and what it left behind. From that follows the list: every module from outside of
the project, and the generated stubs (a changed contract restarts the sidecar), but not

- the project's own code: each worker runs it anew, so that a reload needs only new workers;
- what starts threads or opens sockets, as gRPC's core does with its first channel: a fork would copy half of it. The
  modules that it imports itself are preloaded one by one instead.

The list is kept in the state folder until something changes that it depends on: the interpreter, the search path, what
is installed, the project's files that were imported. It is a matter of speed only: a worker imports what is missing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from mesh.sidecar.workers.import_probe import Answer, Import, Plan, Question, read, written

__all__ = ["Import", "Plan", "find"]

PATIENCE = 60.0
"""Seconds that the scratch process may take."""


class _Kept(msgspec.Struct, frozen=True):
    """The file in the state folder: the plan, and what it depends on."""

    basis: str
    files: dict[str, int]
    plan: Plan


def find(module: str, *, root: Path, stubs: Path, keep: Path, path: Sequence[str] | None = None) -> Plan:
    """Return the plan for a service; if there is no current one, this takes as long as importing the module does.

    Args:
        module: The module of the service's functions.
        root: The project: the folder of mesh.toml.
        stubs: The folder of the generated stubs.
        keep: The file that the plan is kept in.
        path: ``sys.path`` of the workers; None: the one of this process.

    Returns:
        The plan; an empty one, which says why in ``failed``, when the module cannot be imported at all.
    """
    question = Question(module, tuple(sys.path if path is None else path), str(root), str(stubs))
    basis = _basis(question)
    with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
        kept = read(keep.read_bytes(), _Kept)
        if kept.basis == basis and kept.files == _times(kept.files):
            return kept.plan
    answer = _ask(question)
    if not answer.plan.failed:
        with contextlib.suppress(OSError):  # a container may have no place to write; it asks again at its next start
            keep.parent.mkdir(parents=True, exist_ok=True)
            fresh = keep.with_name(f"{keep.name}.{os.getpid()}")
            basis = _basis(question)  # the import itself may have made a __pycache__ in a folder
            fresh.write_bytes(written(_Kept(basis, _times(answer.files), answer.plan)))
            fresh.replace(keep)
    return answer.plan


def _basis(question: Question) -> str:
    """Return a digest of what the plan depends on besides the project's files.

    An installation adds or removes a folder ``NAME-VERSION.dist-info``, so the time of the folder around it tells; the
    stubs are replaced as a whole.
    """
    folders = [*(folder for folder in question.path if folder.endswith("-packages")), question.stubs]
    return sha256(written([sys.version, sys.executable, question, _times(folders)])).hexdigest()


def _times(files: Iterable[str]) -> dict[str, int]:
    """Return when each was changed, nanoseconds; without those that are gone."""
    found = {}
    for file in files:
        with contextlib.suppress(OSError):
            found[file] = Path(file).stat().st_mtime_ns
    return found


def _ask(question: Question) -> Answer:
    with tempfile.TemporaryFile() as file:
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter
                [sys.executable, "-P", "-m", "mesh.sidecar.workers.import_probe", str(file.fileno())],
                input=written(question),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(file.fileno(),),
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _nothing(f"its import took longer than {PATIENCE:g} s")
        file.seek(0)
        text = file.read()
    if not text:
        return _nothing(f"the process that imported it ended with {done.returncode}")
    return read(text, Answer)


def _nothing(why: str) -> Answer:
    return Answer(Plan((), (), {}, why), ())
