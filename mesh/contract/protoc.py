"""protoc runner: compiles .proto files to descriptors and Python stubs.

protoc is that of grpcio-tools. It runs as a process, because its diagnostics go to standard error. The imports
``google/protobuf``, ``google/api``, ``google/rpc``, ``buf/validate`` and ``meshapi`` need no import root of the user.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from google.protobuf import descriptor_pb2

from mesh.contract import generated_stubs, message_stubs, protoc_errors, service_stubs
from mesh.contract.descriptor_pool import build_pool
from mesh.contract.stub_module import module_name
from mesh.faults import Fault, Faults

__all__ = ["DESCRIPTORS", "add", "builtin_file", "builtin_roots", "descriptors", "generate", "load", "sources"]

DESCRIPTORS = "contract.binpb"
"""Name of the file with the compiled contract, in the folder of the stubs."""

_STUBS = ("--python_out=.", "--grpc_python_out=.")
_STAMP = "contract.sha256"
_STAMP_ADDED = "added.sha256"
_GENERATOR_VERSION = 5
"""Version of the generator's output. Stubs of another version are out of date."""
_UNTYPED = "# type: ignore\n"
"""First line of a module: protoc writes it without annotations. Type checkers read the type stub beside it."""
_LINE_NUMBER = re.compile(r":\d+\Z")
_IMPORT = re.compile(r"""^\s*import\s+(?:public\s+|weak\s+)?["']([^"']+)["']""", re.MULTILINE)
_INSTALLED = ("google/protobuf/", "google/api/", "google/rpc/")
_VENDORED = Path(__file__).parent / "protos"
"""Import root of ``buf/validate/validate.proto``, of which no package has the file or its Python module. It is the file
of the protovalidate version in pyproject.toml. Its licence, Apache-2.0, is beside it."""
_RULES = "buf/validate/validate.proto"
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)


def builtin_roots() -> list[Path]:
    """Return the import roots of every contract: ``meshapi``, the common Google protos and ``buf/validate``."""
    here = Path(__file__).parent.parent
    own = here / "protos"
    roots = [own if own.is_dir() else here.parent / "protos"]
    spec = find_spec("google.api")
    roots += [Path(place).parent.parent for place in (spec.submodule_search_locations if spec else None) or ()]
    spec = find_spec("grpc_tools")
    roots += [Path(place) / "_proto" for place in (spec.submodule_search_locations if spec else None) or ()]
    return [*roots, _VENDORED]


def builtin_file(name: str) -> Path | None:
    """Return the file of an import name in a built-in import root, or None. Only the first root has ``meshapi``."""
    roots = builtin_roots()
    paths = (root / name for root in (roots[:1] if name.startswith("meshapi/") else roots[1:]))
    return next((path for path in paths if path.is_file()), None)


def sources(roots: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return every .proto file below ``roots`` as (root, import name), sorted by name.

    A file below two roots belongs to the inner one. Of two files with the same name the one in the first root counts,
    as in protoc.

    Raises:
        Faults: A root is no folder, or has no .proto file.
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
    """Whether a file is the user's own and belongs to this root.

    Files in hidden folders (.venv, .mesh), of package managers, and below an inner root do not.
    """
    foreign = any(part.startswith(".") or part in ("node_modules", "site-packages") for part in name.parts)
    return not foreign and not path.is_dir() and not any(path.is_relative_to(root) for root in inner)


def load(roots: Sequence[Path], out: Path) -> descriptor_pb2.FileDescriptorSet:
    """Return the compiled contract. Generates it and the stubs in ``out`` if they are out of date.

    Raises:
        Faults: protoc refused a file. Each diagnostic is one fault.
    """
    generate(roots, out)
    return descriptor_pb2.FileDescriptorSet.FromString((out / DESCRIPTORS).read_bytes())


def load_valid(
    roots: Sequence[Path], out: Path
) -> tuple[descriptor_pb2.FileDescriptorSet | None, frozenset[str], list[Fault]]:
    """Compile the files that are valid, for the checks that follow the compiler's.

    Args:
        roots: Import roots.
        out: An empty folder, which gets their stubs.

    Returns:
        The valid files with their imports, None if there are none; the names of the other files, which are refused or
        import one that is; and all faults of the compiler.
    """
    files = sources(roots)
    refused: set[str] = set()
    faults: list[Fault] = []
    while files:
        try:
            _run(roots, files, out)
        except Faults as found:
            faults += found.faults
            paths = {str(root / name): name for root, name in files}
            places = {_LINE_NUMBER.sub("", fault.place) for fault in found.faults}
            wrong = {name for path, name in paths.items() if {path, name} & places}
            if not wrong:
                return None, frozenset(name for _, name in files) | refused, faults
            refused |= _with_importers(wrong, files)
            files = [(root, name) for root, name in files if name not in refused]
        else:
            return (
                descriptor_pb2.FileDescriptorSet.FromString((out / DESCRIPTORS).read_bytes()),
                frozenset(refused),
                faults,
            )
    return None, frozenset(refused), faults


def _with_importers(names: Collection[str], files: Sequence[tuple[Path, str]]) -> set[str]:
    """Return the names, and those of the files that import one of them."""
    imports = {name: set(_IMPORT.findall((root / name).read_bytes().decode(errors="replace"))) for root, name in files}
    found: set[str] = set()
    new = set(names)
    while new:
        found |= new
        new = {name for name, imported in imports.items() if imported & new} - found
    return found


def descriptors(roots: Sequence[Path]) -> descriptor_pb2.FileDescriptorSet:
    """Return the compiled contract without generating stubs.

    Raises:
        Faults: A file cannot be read, or protoc refused it.
    """
    with tempfile.TemporaryDirectory(prefix="mesh-contract-") as folder:
        _run(roots, sources(roots), Path(folder), stubs=False)
        return descriptor_pb2.FileDescriptorSet.FromString((Path(folder) / DESCRIPTORS).read_bytes())


def generate(roots: Sequence[Path], out: Path, *, force: bool = False) -> bool:
    """Generate Python stubs (messages, gRPC, type stubs) and the compiled contract into ``out``.

    The folder is replaced as a whole, and only if a source or the generator has changed. Several processes may do it at
    the same time.

    Args:
        roots: Import roots. Every .proto file below them belongs to the contract.
        out: Folder of the generated files, for nothing else.
        force: Generate even if the files are up to date.

    Returns:
        Whether the files were generated.

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
    """Create a temporary folder beside ``out``.

    Raises:
        Faults: This folder or ``out`` is not writable.
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
    """Generate the stubs of descriptors that have no .proto file, in a folder filled by ``generate``.

    Args:
        files: The descriptors with all their imports.
        names: Names of the files that get stubs.
        out: Folder of the stubs.
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
        _complete(files, names, fresh)
        source.unlink()
        (fresh / _STAMP_ADDED).write_text(digest)
        for path in sorted(fresh.rglob("*"), key=lambda path: path.name == _STAMP_ADDED):  # the stamp comes last
            target = out / path.relative_to(fresh)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                path.replace(target)


def _replace(fresh: Path, out: Path) -> None:
    """Replace ``out`` by ``fresh``. A reader sees old files or new ones, never a part of one."""
    if not out.exists():
        try:
            fresh.rename(out)
        except OSError:
            if not out.is_dir():  # otherwise another process was faster
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


def _run(roots: Sequence[Path], files: Sequence[tuple[Path, str]], out: Path, *, stubs: bool = True) -> None:
    on_disk = {name: str(root / name) for root, name in files}
    own = _own_options()
    names = [*(name for name in on_disk if name not in own), *own]
    python = [name for name in names if not _is_installed(name)]
    found = [*_unreadable(on_disk), *_one_module(python, on_disk)]
    if found:
        raise Faults(found)
    # -I=DISK has no virtual path. meshapi comes first, because a copy in a root of the user may be older.
    includes = [f"-Imeshapi={_named(builtin_roots()[0] / 'meshapi', out)}"]
    includes += [f"-I={_named(root, out)}" for root in [*roots, *builtin_roots()[1:]]]
    arguments = {name: _argument(name, root, out) for root, name in files}
    compiled = ["--include_imports", "--include_source_info", f"--descriptor_set_out={DESCRIPTORS}"]
    _protoc([*includes, *compiled, *(arguments.get(name, name) for name in names)], out, on_disk)
    if not stubs:
        return
    if _RULES not in on_disk and _imports(out / DESCRIPTORS, _RULES):
        python.append(_RULES)
    _protoc([*includes, *_STUBS, *(arguments.get(name, name) for name in python)], out, on_disk)
    _complete(descriptor_pb2.FileDescriptorSet.FromString((out / DESCRIPTORS).read_bytes()), python, out)


def _complete(files: descriptor_pb2.FileDescriptorSet, names: Collection[str], out: Path) -> None:
    """Write the type stubs of files beside protoc's modules, and add to these the names that only the mesh has.

    Raises:
        Faults: protobuf's runtime refuses a file.
    """
    pool = build_pool(files)
    for proto in files.file:
        if proto.name not in names:
            continue
        file = pool.FindFileByName(proto.name)
        messages = out / f"{module_name(proto.name).replace('.', '/')}.py"
        services = messages.with_name(f"{messages.stem}_grpc.py")
        messages.write_text(_UNTYPED + messages.read_text(encoding="utf-8"), encoding="utf-8")
        messages.with_suffix(".pyi").write_text(message_stubs.message_stub(file, proto), encoding="utf-8")
        text = generated_stubs.escaped(services.read_text(encoding="utf-8")) + service_stubs.runtime_names(file)
        services.write_text(_UNTYPED + text, encoding="utf-8")
        services.with_suffix(".pyi").write_text(service_stubs.service_stub(file, proto), encoding="utf-8")


def _own_options() -> list[str]:
    """Return the names of the files of ``meshapi``."""
    root = builtin_roots()[0]
    return [path.relative_to(root).as_posix() for path in sorted(root.glob("meshapi/**/*.proto"))]


def _imports(descriptors: Path, name: str) -> bool:
    """Whether a file is among compiled descriptors."""
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())
    return any(file.name == name for file in files.file)


def _is_installed(name: str) -> bool:
    """Whether an installed package has the Python module of a file. The processes of the mesh import that one."""
    return name.startswith(_INSTALLED) and any((root / name).is_file() for root in builtin_roots()[1:])


def _unreadable(on_disk: Mapping[str, str]) -> Iterator[Fault]:
    """Yield a fault for each file that is not UTF-8, which protoc accepts."""
    for path in on_disk.values():
        data = Path(path).read_bytes()
        try:
            data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            yield Fault(f"{path}:{line}", "the file is not UTF-8; save it as UTF-8, comments included")


def _one_module(names: Sequence[str], on_disk: Mapping[str, str]) -> Iterator[Fault]:
    """Yield a fault for each file whose Python module has the name of another file's."""
    taken: dict[str, str] = {}
    for name in names:
        module = module_name(name).replace(".", "/") + ".py"
        other = taken.setdefault(module, name)
        if other != name:
            yield Fault(on_disk.get(name, name), f"its Python module {module} is also that of {other}; rename the file")


def _argument(name: str, root: Path, out: Path) -> str:
    """Return the protoc argument for a file. A name that begins with ``-`` or ``@`` gets its folder in front."""
    return f"{_named(root, out)}/{name}" if name.startswith(("-", "@")) else name


def _named(path: Path, out: Path) -> str:
    """Return the path of a file or folder relative to ``out``, where protoc runs.

    protoc splits paths at ``:``. A relative path has none of the folders above the project.

    Raises:
        Faults: The path has a ``:`` all the same.
    """
    name = os.path.relpath(path.resolve(), out.resolve())
    if os.pathsep in name:
        raise Faults([Fault(str(path), f"protoc splits paths at {os.pathsep!r}; rename the folder")])
    return name


def _protoc(arguments: list[str], folder: Path, on_disk: Mapping[str, str]) -> None:
    """Run protoc in a folder."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(  # noqa: S603 - our own interpreter, a list of arguments
        [sys.executable, "-P", "-m", "grpc_tools.protoc", *arguments],
        capture_output=True, encoding="utf-8", errors="replace", check=False, env=environment, cwd=folder,
    )  # fmt: skip
    if done.returncode != 0:
        found = protoc_errors.faults(done.stderr, on_disk, folder.resolve())
        raise Faults(found or [Fault("protoc", f"exited with {done.returncode} and no error message")])


def _digest(files: Sequence[tuple[Path, str]]) -> str:
    """Return a digest of the files and of the generator's version.

    Raises:
        Faults: A file cannot be read.
    """
    total = hashlib.sha256(f"{_GENERATOR_VERSION} {importlib.metadata.version('grpcio-tools')}".encode())
    for root, name in [*files, *((builtin_roots()[0], name) for name in _own_options())]:
        total.update(f"\0{name}\0".encode())
        try:
            total.update((root / name).read_bytes())
        except OSError as error:
            raise Faults([Fault(str(root / name), (error.strerror or str(error)).lower())]) from None
    return total.hexdigest()
