"""Runs protoc: .proto files → descriptors, and → Python stubs.

protoc is the one of grpcio-tools, run as a process so that its diagnostics can be read. The well-known imports
(``google/protobuf``, ``google/api``, ``google/rpc`` and ``meshapi``) resolve without an import root of the user's.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from google.protobuf import descriptor_pb2

from mesh.contract import generated_stubs, protoc_errors
from mesh.faults import Fault, Faults

__all__ = ["DESCRIPTORS", "add", "builtin_roots", "generate", "load", "sources"]

DESCRIPTORS = "contract.binpb"
"""The file, in the folder of the stubs, that holds the compiled contract."""

_STUBS = ("--python_out=.", "--pyi_out=.", "--grpc_python_out=.")
_STAMP = "contract.sha256"
_STAMP_ADDED = "added.sha256"
_GENERATION = 3
"""Counts the changes of what is generated from a source: older stubs are then not current."""
_UNTYPED = "# mypy: ignore-errors\n"
"""First line of a gRPC stub: protoc writes it without annotations, which ``mypy --strict`` of a user would report."""
_INSTALLED = ("google/protobuf/", "google/api/", "google/rpc/")


_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)


def builtin_roots() -> list[Path]:
    """Return the import roots that every contract has: ``meshapi`` and the common Google protos."""
    here = Path(__file__).parent.parent
    own = here / "protos"
    roots = [own if own.is_dir() else here.parent / "protos"]
    spec = find_spec("google.api")
    roots += [Path(place).parent.parent for place in (spec.submodule_search_locations if spec else None) or ()]
    spec = find_spec("grpc_tools")
    roots += [Path(place) / "_proto" for place in (spec.submodule_search_locations if spec else None) or ()]
    return roots


def sources(roots: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return every .proto file below ``roots`` as (root, name as it is imported), sorted by name.

    A file below two roots belongs to the inner one. Of two files with one name the first root's is taken, as by
    protoc.

    Raises:
        Faults: A root is not a folder, or holds no .proto file.
    """
    found: dict[str, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise Faults([Fault(str(root), "this import root of `protos` is not a folder")])
        inner = [other for other in roots if other != root and other.is_relative_to(root)]
        files = sorted(path for path in root.rglob("*.proto") if _own(path.relative_to(root), path, inner))
        if not files and not inner:
            raise Faults([Fault(str(root), "there is no .proto file in this import root of `protos`")])
        for path in files:
            found.setdefault(path.relative_to(root).as_posix(), root)
    return sorted((root, name) for name, root in found.items())


def _own(name: Path, path: Path, inner: Sequence[Path]) -> bool:
    """Whether a file is the user's, and of this root.

    It is not in a hidden folder (.venv, .mesh), not installed by a package manager, not below a root inside this one.
    """
    foreign = any(part.startswith(".") or part in ("node_modules", "site-packages") for part in name.parts)
    return not foreign and not path.is_dir() and not any(path.is_relative_to(root) for root in inner)


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
        Faults: A file cannot be read, or protoc refused it.
    """
    files = sources(roots)
    digest = _digest(files)
    stamp = out / _STAMP
    if not force and stamp.is_file() and stamp.read_text() == digest and (out / DESCRIPTORS).is_file():
        return False
    with _beside(out) as fresh:
        _run(roots, files, fresh)
        (fresh / _STAMP).write_text(digest)
        fresh.chmod(0o755)
        _replace(fresh, out)
    return True


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Make an empty folder beside ``out``, which is removed at the end.

    Raises:
        Faults: There, or in ``out``, nothing can be written.
    """
    fresh = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        yield fresh
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        text = f"the stubs cannot be written: {os.strerror(error.errno)}; `stubs` in mesh.toml names another folder"
        raise Faults([Fault(str(out), text)]) from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


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
    with _beside(out) as fresh:
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
    on_disk = {name: str(root / name) for root, name in files}
    own = _own_options()
    names = [*(name for name in on_disk if name not in own), *own]
    python = [name for name in names if not _is_installed(name)]
    found = [*_unreadable(on_disk), *_one_module(python, on_disk)]
    if found:
        raise Faults(found)
    # -I=DISK has no virtual path. meshapi comes first: a copy of it may be an older one.
    includes = [f"-Imeshapi={_named(builtin_roots()[0] / 'meshapi', out)}"]
    includes += [f"-I={_named(root, out)}" for root in [*roots, *builtin_roots()[1:]]]
    arguments = {name: _argument(name, root, out) for root, name in files}
    descriptors = ["--include_imports", "--include_source_info", f"--descriptor_set_out={DESCRIPTORS}"]
    _protoc([*includes, *descriptors, *(arguments.get(name, name) for name in names)], out, on_disk)
    _protoc([*includes, *_STUBS, *(arguments.get(name, name) for name in python)], out, on_disk)
    for stub in out.rglob("*_pb2_grpc.py"):
        text = stub.read_text(encoding="utf-8")
        stub.write_text(_UNTYPED + generated_stubs.escaped(text), encoding="utf-8")


def _own_options() -> list[str]:
    """Return the names of the files of ``meshapi``."""
    root = builtin_roots()[0]
    return [path.relative_to(root).as_posix() for path in sorted(root.glob("meshapi/**/*.proto"))]


def _is_installed(name: str) -> bool:
    """Whether installed packages have the Python module of a file; the mesh's processes import these."""
    return name.startswith(_INSTALLED) and any((root / name).is_file() for root in builtin_roots()[1:])


def _unreadable(on_disk: Mapping[str, str]) -> Iterator[Fault]:
    """Find what protoc lets pass although nothing can be done with it."""
    for path in on_disk.values():
        data = Path(path).read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            yield Fault(f"{path}:{line}", "the file is not UTF-8; save it as UTF-8, also for the sake of its comments")


def _one_module(names: Sequence[str], on_disk: Mapping[str, str]) -> Iterator[Fault]:
    """Find files whose Python modules would be one."""
    taken: dict[str, str] = {}
    for name in names:
        module = name.removesuffix(".proto").replace("-", "_").replace(".", "/") + "_pb2.py"
        other = taken.setdefault(module, name)
        if other != name:
            yield Fault(on_disk.get(name, name), f"its Python module is {module}, as that of {other}; rename the file")


def _argument(name: str, root: Path, out: Path) -> str:
    """Return a file as an argument of protoc, for which ``-`` begins an option and ``@`` a file of arguments."""
    return f"{_named(root, out)}/{name}" if name.startswith(("-", "@")) else name


def _named(path: Path, out: Path) -> str:
    """Return the name of a file or folder for a protoc that runs in ``out``.

    It is relative, so that it holds no folder above the project: protoc splits names at ``:``.

    Raises:
        Faults: It holds one all the same.
    """
    name = os.path.relpath(path.resolve(), out.resolve())
    if os.pathsep in name:
        raise Faults([Fault(str(path), f"protoc takes {os.pathsep!r} for the end of a path; rename the folder")])
    return name


def _protoc(arguments: list[str], folder: Path, on_disk: Mapping[str, str]) -> None:
    """Run protoc in a folder."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(  # noqa: S603 - our own interpreter, a list of arguments
        [sys.executable, "-P", "-m", "grpc_tools.protoc", *arguments],
        capture_output=True, encoding="utf-8", errors="replace", check=False, env=environment, cwd=folder,
    )  # fmt: skip
    if done.returncode != 0:
        said = protoc_errors.faults(done.stderr, on_disk, folder.resolve())
        raise Faults(said or [Fault("protoc", f"exited with {done.returncode} and said nothing")])


def _digest(files: Sequence[tuple[Path, str]]) -> str:
    """Return a digest of the files and of what makes stubs of them.

    Raises:
        Faults: One cannot be read.
    """
    total = hashlib.sha256(f"{_GENERATION} {importlib.metadata.version('grpcio-tools')}".encode())
    for root, name in [*files, *((builtin_roots()[0], name) for name in _own_options())]:
        total.update(f"\0{name}\0".encode())
        try:
            total.update((root / name).read_bytes())
        except OSError as error:
            raise Faults([Fault(str(root / name), (error.strerror or str(error)).lower())]) from None
    return total.hexdigest()
