"""Parser of protoc's error output: one fault for each mistake, with its correction. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mesh.faults import Fault

__all__ = ["faults"]

_LINE = re.compile(r"^(?P<file>[^:\s][^:]*\.proto):(?:(?P<line>\d+):\d+: )?\s*(?P<text>.*)$")
_IMPORT = re.compile(r'Import "(?P<name>.*)" was not found or had errors\.')
_DEFINED = re.compile(r'".*" is already defined in file "(?P<name>.*)"\.')
_NOT_FOUND = "File not found."

_SOURCES = {
    "validate/": "protoc-gen-validate",
    "buf/validate/": "protovalidate",
    "protoc-gen-openapiv2/": "grpc-gateway",
    "gogoproto/": "gogo/protobuf",
    "openapiv3/": "gnostic",
    "google/": "googleapis",
}
"""Prefix of an import → project that publishes the files."""


def faults(output: str, on_disk: Mapping[str, str], folder: Path) -> list[Fault]:
    """Return the faults.

    Args:
        output: Standard error of protoc.
        on_disk: Import name → path of each file of the contract.
        folder: Working directory of protoc. It names a file by the import, or by the path relative to this folder.
    """
    lines = [line for line in output.splitlines() if line.strip() and "warning:" not in line]
    matches = [_LINE.match(line) for line in lines]
    missing = {match["file"] for match in matches if match and match["text"] == _NOT_FOUND}
    imported = {found["name"] for match in matches if match and (found := _IMPORT.match(match["text"]))}
    wrong = {match["file"] for match in matches if match}
    made: list[Fault] = []
    copies: set[tuple[str, str]] = set()
    for line, match in zip(lines, matches, strict=True):
        if match is None:
            made.append(Fault("protoc", line))
            continue
        name, text = match["file"], match["text"]
        path = on_disk.get(name) or (os.path.normpath(folder / name) if name.startswith("..") else name)
        place = path + (f":{match['line']}" if match["line"] else "")
        importing, defined = _IMPORT.match(text), _DEFINED.match(text)
        if text == _NOT_FOUND and name in imported:
            continue  # reported at the import
        if importing and importing["name"] in missing:
            made.append(Fault(place, "".join(_missing(importing["name"], on_disk))))
        elif importing and importing["name"] in wrong:
            continue  # reported in the imported file
        elif defined and _is_below(name, defined["name"]):
            if (name, defined["name"]) not in copies:
                copies.add((name, defined["name"]))
                made.append(Fault(place, _copy(path, defined["name"])))
        else:
            made.append(Fault(place, text))
    return made


def _is_below(name: str, other: str) -> bool:
    return name.endswith(f"/{other}")


def _missing(name: str, on_disk: Mapping[str, str]) -> Iterator[str]:
    yield f"the import {name!r} is in no import root; "
    folder, owner = _folder(name, on_disk.values()), next((one for one in on_disk if _is_below(name, one)), None)
    if owner is not None:
        yield f"write import {owner!r}: the name is relative to the import root"
    elif folder is not None:
        yield f"add the folder {folder} to `protos` in mesh.toml"
    else:
        source = next((project for start, project in _SOURCES.items() if name.startswith(start)), None)
        yield f"copy the file{f' from {source}' if source else ''} into an import root under this name, "
        yield "or add the folder that holds it to `protos` in mesh.toml"


def _folder(name: str, paths: Iterable[str]) -> str | None:
    """Return the folder that an import name is relative to, or None."""
    return next((path.removesuffix(f"/{name}") for path in paths if _is_below(path, name)), None)


def _copy(path: str, name: str) -> str:
    folder = path.removesuffix(f"/{name}")
    return f"this is {name!r} under another name; add the folder {folder} to `protos` in mesh.toml"
