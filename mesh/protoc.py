"""Runs protoc: .proto files → descriptors, and → Python stubs.

protoc is the one of grpcio-tools, run as a process so that its diagnostics can be read. The well-known imports
(``google/protobuf``, ``google/api``, ``google/rpc`` and ``meshapi``) resolve without an import root of the user's.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from google.protobuf import descriptor_pb2

from mesh.faults import Fault, Faults

__all__ = ["DESCRIPTORS", "add", "builtin_roots", "generate", "load", "sources"]

DESCRIPTORS = "contract.binpb"
"""The file, in the folder of the stubs, that holds the compiled contract."""

_STUBS = ("--python_out=.", "--pyi_out=.", "--grpc_python_out=.")
_STAMP = "contract.sha256"
_STAMP_ADDED = "added.sha256"
_DIAGNOSTIC = re.compile(r"^(?P<file>[^:\s][^:]*\.proto):(?:(?P<line>\d+):\d+: )?\s*(?P<text>.*)$")


def builtin_roots() -> list[Path]:
    """Return the import roots that every contract has: ``meshapi`` and the common Google protos."""
    here = Path(__file__).parent
    own = here / "protos"
    roots = [own if own.is_dir() else here.parent / "protos"]
    spec = find_spec("google.api")
    roots += [Path(place).parent.parent for place in (spec.submodule_search_locations if spec else None) or ()]
    spec = find_spec("grpc_tools")
    roots += [Path(place) / "_proto" for place in (spec.submodule_search_locations if spec else None) or ()]
    return roots


def sources(roots: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return every .proto file below ``roots`` as (root, name as it is imported), sorted by name.

    Raises:
        Faults: A root is not a folder, or holds no .proto file.
    """
    found: dict[str, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise Faults([Fault(str(root), "this import root of `protos` is not a folder")])
        files = sorted(path for path in root.rglob("*.proto") if _own(path.relative_to(root)))
        if not files:
            raise Faults([Fault(str(root), "there is no .proto file in this import root of `protos`")])
        for path in files:
            found.setdefault(path.relative_to(root).as_posix(), root)
    return sorted((root, name) for name, root in found.items())


def _own(path: Path) -> bool:
    """Whether it is the user's: not in a hidden folder (.venv, .mesh) and not installed by a package manager."""
    return not any(part.startswith(".") or part in ("node_modules", "site-packages") for part in path.parts)


def load(roots: Sequence[Path], out: Path) -> descriptor_pb2.FileDescriptorSet:
    """Return the compiled contract, generating it and the stubs into ``out`` first if they are not current.

    Raises:
        Faults: protoc refused a file; one fault for each of its diagnostics.
    """
    generate(roots, out)
    return descriptor_pb2.FileDescriptorSet.FromString((out / DESCRIPTORS).read_bytes())


def generate(roots: Sequence[Path], out: Path, *, force: bool = False) -> bool:
    """Generate Python stubs (messages, gRPC, .pyi) and the compiled contract into ``out``.

    The folder is replaced as a whole and only if a source, or the generator, has changed; safe when several processes
    do it at once.

    Args:
        roots: Import roots; every .proto file below them is part of the contract.
        out: The folder to be made; nothing else should live in it.
        force: Generate even if it is current.

    Returns:
        Whether anything was generated.

    Raises:
        Faults: protoc refused a file.
    """
    files = sources(roots)
    digest = _digest(files)
    stamp = out / _STAMP
    if not force and stamp.is_file() and stamp.read_text() == digest and (out / DESCRIPTORS).is_file():
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _run(roots, files, fresh)
        (fresh / _STAMP).write_text(digest)
        fresh.chmod(0o755)
        _replace(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def add(files: descriptor_pb2.FileDescriptorSet, names: Sequence[str], out: Path) -> None:
    """Generate the stubs of files that were made, not written, into a folder that ``generate`` has filled.

    Args:
        files: The files, with all that they import.
        names: Those whose stubs are wanted.
        out: The folder.
    """
    own = descriptor_pb2.FileDescriptorSet(file=[file for file in files.file if file.name in names])
    digest = hashlib.sha256(own.SerializeToString(deterministic=True)).hexdigest()
    stamp = out / _STAMP_ADDED
    if not names or (stamp.is_file() and stamp.read_text() == digest):
        return
    fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        source = fresh / DESCRIPTORS
        source.write_bytes(files.SerializeToString())
        _protoc([f"--descriptor_set_in={DESCRIPTORS}", *_STUBS, *names], fresh, {})
        source.unlink()
        (fresh / _STAMP_ADDED).write_text(digest)
        for path in sorted(fresh.rglob("*"), key=lambda path: path.name == _STAMP_ADDED):  # the stamp comes last
            target = out / path.relative_to(fresh)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace(fresh: Path, out: Path) -> None:
    """Put ``fresh`` in the place of ``out``; a reader sees the old files or the new ones."""
    if not out.exists():
        try:
            fresh.rename(out)
        except OSError:
            if not out.is_dir():  # another process was first
                raise
        else:
            return
    for path in sorted(fresh.rglob("*")):
        target = out / path.relative_to(fresh)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif path.name != _STAMP:
            path.replace(target)
    (fresh / _STAMP).replace(out / _STAMP)


def _run(roots: Sequence[Path], files: Sequence[tuple[Path, str]], out: Path) -> None:
    names = [name for _, name in files]
    if not any(name.startswith("meshapi/") for name in names):
        names += [
            path.relative_to(builtin_roots()[0]).as_posix() for path in builtin_roots()[0].glob("meshapi/**/*.proto")
        ]
    python = [name for name in names if not name.startswith("google/")]
    includes = [f"-I{_named(root, out)}" for root in [*roots, *builtin_roots()]]
    descriptors = ["--include_imports", "--include_source_info", f"--descriptor_set_out={DESCRIPTORS}"]
    on_disk = {name: str(root / name) for root, name in files}
    _protoc([*includes, *descriptors, *names], out, on_disk)
    _protoc([*includes, *_STUBS, *python], out, on_disk)


def _named(root: Path, out: Path) -> str:
    """Return the name of an import root for a protoc that runs in ``out``.

    It is relative, so that it holds no folder above the project: protoc splits a name at ``:`` and ``=``.

    Raises:
        Faults: It holds one of them all the same.
    """
    name = os.path.relpath(root.resolve(), out.resolve())
    if ":" in name or "=" in name:
        raise Faults(
            [Fault(str(root), "the name of an import root must hold neither ':' nor '=': protoc splits at them")]
        )
    return name


def _protoc(arguments: list[str], folder: Path, on_disk: Mapping[str, str]) -> None:
    """Run protoc in a folder."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(  # noqa: S603 - our own interpreter, a list of arguments
        [sys.executable, "-P", "-m", "grpc_tools.protoc", *arguments],
        capture_output=True, encoding="utf-8", errors="replace", check=False, env=environment, cwd=folder,
    )  # fmt: skip
    if done.returncode != 0:
        faults = [
            _fault(line, folder, on_disk)
            for line in done.stderr.splitlines()
            if line.strip() and "warning:" not in line
        ]
        raise Faults(faults or [Fault("protoc", f"exited with {done.returncode} and said nothing")])


def _fault(line: str, folder: Path, on_disk: Mapping[str, str]) -> Fault:
    match = _DIAGNOSTIC.match(line)
    if match is None:
        return Fault("protoc", line)
    file = on_disk.get(match["file"], match["file"])
    if file.startswith(".."):  # protoc says which file it read, or as what it was imported
        file = os.path.normpath(folder.resolve() / file)
    place = file + (f":{match['line']}" if match["line"] else "")
    return Fault(place, match["text"])


def _digest(files: Sequence[tuple[Path, str]]) -> str:
    total = hashlib.sha256(importlib.metadata.version("grpcio-tools").encode())
    builtin = builtin_roots()[0]
    own = [(builtin, path.relative_to(builtin).as_posix()) for path in sorted(builtin.glob("meshapi/**/*.proto"))]
    for root, name in [*files, *own]:
        total.update(f"\0{name}\0".encode())
        total.update((root / name).read_bytes())
    return total.hexdigest()
