"""Contracts compiled from text in this process, without files of stubs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc as compiler

from mesh.contract import loader, protoc
from mesh.contract.model import Contract


def compiled(**sources: str) -> FileDescriptorSet:
    """Return the compiled files; ``shop="…"`` is the text of ``shop.proto``."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, text in sources.items():
            (root / f"{name}.proto").write_text(text)
        out = root / "out.binpb"
        roots = [f"-I{one}" for one in (root, *protoc.builtin_roots())]
        names = [f"{name}.proto" for name in sources]
        arguments = ["--include_imports", "--include_source_info", f"--descriptor_set_out={out}"]
        assert compiler.main(["protoc", *roots, *arguments, *names]) == 0, sources
        return FileDescriptorSet.FromString(out.read_bytes())


def contract_of(**sources: str) -> Contract:
    """Return the checked contract of these files."""
    return loader.read(compiled(**sources))
