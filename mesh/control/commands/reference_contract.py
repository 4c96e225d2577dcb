"""Reference contract of ``mesh check --against``: that of a git commit or of a compiled file."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import DecodeError

from mesh.config import manifest as manifests
from mesh.config.manifest import Manifest
from mesh.contract import loader, protoc
from mesh.contract.model import Contract
from mesh.control.commands.captured_drops import version_files
from mesh.faults import Fault, Faults
from mesh.lambdas.service_descriptor import extend

__all__ = ["Reference", "committed", "from_file", "reference"]

_SUFFIXES = (".proto", ".toml", ".json", ".yaml", ".yml", ".py")
"""Files that make a contract: .proto files, mesh.toml, documents of Lambda functions. Migrations are compared too."""
_SYMBOLIC_LINK = b"120000"


@dataclass(frozen=True, slots=True)
class Reference:
    """The earlier state that a contract is compared with.

    Attributes:
        contract: The contract.
        versions: Service → contents of its migrations by file name; None: unknown.
    """

    contract: Contract
    versions: Mapping[str, Mapping[str, bytes]] | None = None


def reference(manifest: Manifest, ref: str) -> Reference:
    """Return the state that a text names: a compiled file, or a commit of the project's git repository.

    Raises:
        Faults: The text is neither, or the contract cannot be read.
    """
    path = Path(ref)
    if path.is_file():
        return Reference(from_file(path))
    if path.suffix == ".binpb":
        raise Faults([Fault(ref, "no such file; `mesh export contract -o FILE` writes one")])
    with committed(manifest, ref) as old:
        return Reference(_compiled(old, ref), version_files(old))


def from_file(path: Path) -> Contract:
    """Return the contract of a ``FileDescriptorSet``, as ``mesh export contract`` writes it.

    Raises:
        Faults: The file is none, or lacks an import.
    """
    try:
        files = FileDescriptorSet.FromString(path.read_bytes())
    except OSError as error:
        raise Faults([Fault(str(path), f"cannot be read: {error.strerror}")]) from None
    except DecodeError:
        files = FileDescriptorSet()
    if not files.file:
        text = "not a compiled contract (FileDescriptorSet); `mesh export contract` writes one"
        raise Faults([Fault(str(path), text)])
    lacking = {name for file in files.file for name in file.dependency} - {file.name for file in files.file}
    if lacking:
        text = f"it lacks the imports {', '.join(sorted(lacking))}; compile it with --include_imports"
        raise Faults([Fault(str(path), text)])
    return loader.read(files, checked=False)


@contextmanager
def committed(manifest: Manifest, ref: str) -> Iterator[Manifest]:
    """Check a commit out into a temporary folder for the time of a block, and return its manifest.

    Only the files that make a contract are written. Import roots that the commit does not have, such as those of
    installed packages, are those of the disk. The environment does not override the manifest.

    Raises:
        Faults: There is no such commit, or its manifest cannot be read.
    """
    top = _top_folder(manifest, ref)
    with tempfile.TemporaryDirectory(prefix="mesh-against-") as folder:
        root = Path(folder).resolve()
        for name, mode, content in _files_of_commit(top, ref):
            _write(root, name, mode, content)
        file = root / manifest.file.relative_to(top)
        if not file.is_file():
            raise Faults([Fault(ref, f"this commit has no {manifest.file.relative_to(top)}; name one that has it")])
        try:
            old = manifests.load(file, {})
        except Faults as found:
            raise Faults([Fault(f"{ref}:{fault.place}", fault.text) for fault in found.faults]) from None
        for path in old.protos:
            on_disk = top / path.relative_to(root) if path.is_relative_to(root) else path
            if not path.exists() and on_disk.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(on_disk, path)
        yield old


def _compiled(old: Manifest, ref: str) -> Contract:
    try:
        files = protoc.descriptors(old.protos)
        serves = {name for service in old.services.values() for name in service.serves}
        return loader.read(extend(files, old.lambdas.values()), serves, checked=False)
    except Faults as found:
        root = f"{old.file.parent}{os.sep}"
        raise Faults([Fault(f"{ref}:{fault.place.removeprefix(root)}", fault.text) for fault in found.faults]) from None


def _top_folder(manifest: Manifest, ref: str) -> Path:
    """Return the top folder of the project's git repository.

    Raises:
        Faults: git is not installed, the project is in no repository, or there is no commit of this name.
    """
    place = manifest.root
    if shutil.which("git") is None:
        text = "git is not installed; compare with a file: mesh export contract -o FILE, mesh check --against FILE"
        raise Faults([Fault(ref, text)])
    lacking = f"{place} is in no git repository, and no file has this name"
    top = _git(place, ref, "rev-parse", "--show-toplevel", lacking=lacking)
    lacking = "neither a file nor a commit of this repository; a shallow clone lacks older ones (git fetch origin REF)"
    _git(place, ref, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", lacking=lacking)
    return Path(top.decode().rstrip("\n")).resolve()


def _files_of_commit(top: Path, ref: str) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield name, mode and content of the files of a commit that make a contract."""
    listed = _git(top, ref, "ls-tree", "-r", "-z", "--full-tree", "--end-of-options", ref, lacking="cannot be listed")
    found = []
    for line in listed.split(b"\0"):
        head, _, name = line.partition(b"\t")
        mode, _, rest = head.partition(b" ")
        kind, _, blob = rest.partition(b" ")
        if kind == b"blob" and (mode == _SYMBOLIC_LINK or PurePosixPath(os.fsdecode(name)).suffix in _SUFFIXES):
            found.append((os.fsdecode(name), mode, blob))
    request = b"".join(blob + b"\n" for _, _, blob in found)
    contents = _git(top, ref, "cat-file", "--batch", lacking="cannot be read", request=request)
    at = 0
    for path, mode, _ in found:
        end = contents.index(b"\n", at)
        size = int(contents[at:end].rsplit(b" ", 1)[1])
        yield path, mode, contents[end + 1 : end + 1 + size]
        at = end + 1 + size + 1


def _git(place: Path, ref: str, *words: str, lacking: str, request: bytes = b"") -> bytes:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(  # noqa: S603 - a list of arguments
        ["git", "-C", str(place), *words],  # noqa: S607 - the user's git
        input=request, capture_output=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise Faults([Fault(ref, f"{lacking} ({reason})" if reason else lacking)])
    return done.stdout


def _write(root: Path, name: str, mode: bytes, content: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode != _SYMBOLIC_LINK:
        path.write_bytes(content)
        return
    target = os.fsdecode(content)
    if not Path(target).is_absolute() and (path.parent / target).resolve().is_relative_to(root):
        path.symlink_to(target)
