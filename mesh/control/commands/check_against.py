"""``mesh check --against``: breaking changes of the contract as text, JSON or annotations of GitHub."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mesh.config import manifest as manifests
from mesh.config.manifest import Manifest
from mesh.contract import protoc
from mesh.contract.breaks.break_rules import Break
from mesh.contract.breaks.comparison import breaks, with_acceptances
from mesh.contract.model import Contract
from mesh.control.commands.captured_drops import captured_drops
from mesh.control.commands.reference_contract import reference
from mesh.control.commands.running_contract import running_contract
from mesh.faults import Fault, Faults
from mesh.text import json_for

__all__ = ["BROKEN", "FORMATS", "print_faults", "run", "run_running"]

BROKEN = 3
"""Exit code for a breaking change that the contract does not accept."""
_PLACE = re.compile(r"(?P<file>[^:\s][^:]*?\.(?:proto|py|toml))(?::(?P<line>\d+))?(?::\d+)?(?= |\Z|:)")


def run(manifest: Manifest, contract: Contract, ref: str, output: str) -> int:
    """Compare the contract with that of a git commit or a compiled file, and print its breaking changes.

    Args:
        manifest: The manifest.
        contract: The new contract.
        ref: Git commit, or path of a file that ``mesh export contract`` wrote.
        output: ``text``, ``json`` or ``github``.

    Returns:
        0: there is none, or each is accepted; ``BROKEN``: there is one that is not.

    Raises:
        Faults: The old contract cannot be read.
    """
    found = reference(manifest, ref)
    dropped = [] if found.versions is None else captured_drops(manifest, contract, found.versions)
    return report(manifest, _compared(manifest, found.contract, contract, dropped), ref, output)


def run_running(manifest: Manifest, contract: Contract, output: str) -> int:
    """Compare the contract with that of the running mesh and with its stored events; as ``run``.

    Raises:
        Faults: A service, a database or the broker cannot be read.
    """
    from mesh.control.commands import stored_events  # noqa: PLC0415 - SQLAlchemy and the broker's client

    with_secrets = manifests.load(manifest.file, secrets_of=lambda owner: _has_database(manifest, owner))
    old = running_contract(with_secrets, [file.name for file in contract.files.file])
    stored = stored_events.stored_breaks(with_secrets, old, contract)
    dropped = captured_drops(manifest, contract, stored_events.applied_versions(with_secrets))
    found = _compared(manifest, old, contract, [*stored, *dropped])
    return report(manifest, found, "the running mesh", output)


def _has_database(manifest: Manifest, owner: str) -> bool:
    """Whether the secrets of an owner are needed: those of the broker, and of services with a database."""
    return not owner or (owner in manifest.services and bool(manifest.services[owner].database))


def _compared(manifest: Manifest, old: Contract, new: Contract, more: Iterable[Break]) -> list[Break]:
    """Return the breaking changes of the contract, and others, by place."""
    edge = manifest.edge
    found = breaks(
        old, new,
        ignores_unknown_json=edge is not None and edge.ignore_unknown_fields,
        default_timeout=None if edge is None else edge.timeout.seconds,
    )  # fmt: skip
    return sorted([*found, *with_acceptances(more, old, new)])


def report(manifest: Manifest, found: Sequence[Break], against: str, output: str) -> int:
    """Print breaks; return the exit code."""
    FORMATS[output](_Places(manifest), found, against)
    return BROKEN if any(not one.accepted for one in found) else 0


def print_faults(file: Path, faults: Sequence[Fault], output: str) -> None:
    """Print faults of a project in a format other than text.

    Args:
        file: mesh.toml, which may have the faults.
        faults: The faults.
        output: ``json`` or ``github``.
    """
    if output == "json":
        print(json_for(sys.stdout, {"faults": [asdict(fault) for fault in faults]}, indent=2))
        return
    try:
        places = _Places(manifests.load(file))
    except Faults:
        places = _Places(None)
    for fault in faults:
        path, line = places.of(fault.place)
        print(_annotation("error", path, line, "mesh check", str(fault)))


class _Places:
    """Paths of the contract's files, relative to the repository as GitHub's annotations need them.

    The repository is the checkout of a workflow (GITHUB_WORKSPACE), otherwise the current folder.
    """

    def __init__(self, manifest: Manifest | None) -> None:
        self._base = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
        roots = manifest.protos if manifest is not None else ()
        self._root = manifest.root if manifest is not None else Path()
        self._roots = {name: root for root, name in protoc.sources(roots)}

    def of(self, place: str) -> tuple[str, int]:
        """Return path and line of a place; line 0: the file as a whole."""
        file, line = _split(place)
        path = (self._roots.get(file, self._root) / file).resolve()
        if not path.exists():
            return file, line
        return str(path.relative_to(self._base) if path.is_relative_to(self._base) else path), line


def _split(place: str) -> tuple[str, int]:
    found = _PLACE.match(place)
    return (found["file"], int(found["line"] or 0)) if found else (place, 0)


def _text(_: _Places, found: Sequence[Break], against: str) -> None:
    for one in found:
        print(one)
    accepted = sum(bool(one.accepted) for one in found)
    refused = [one for one in found if not one.accepted]
    if not found:
        print(f"ok: no breaking change against {against}")
        return
    count = "1 breaking change" if len(refused) == 1 else f"{len(refused)} breaking changes"
    print(f"{count} against {against}" + (f", and {accepted} accepted" if accepted else ""))
    if refused:
        first = refused[0]
        print(
            "to accept one, say so in a file of the contract: option (meshapi.v1.accepted_breaks) = "
            f'{{ rule: "{first.rule}" element: "{first.element}" reason: "…" }};'
        )


def _json(places: _Places, found: Sequence[Break], against: str) -> None:
    print(json_for(sys.stdout, {"against": against, "breaks": list(map(_value(places), found))}, indent=2))


def _value(places: _Places) -> Callable[[Break], Mapping[str, Any]]:
    def value(one: Break) -> Mapping[str, Any]:
        file, line = places.of(one.place)
        return {**asdict(one), "file": file, "line": line}

    return value


def _github(places: _Places, found: Sequence[Break], against: str) -> None:
    for one in found:
        file, line = places.of(one.place)
        text = f"{one.element}: {one.change}; {one.affected}"
        end = f"accepted: {one.accepted}" if one.accepted else f"compatible: {one.compatible}"
        print(_annotation("notice" if one.accepted else "error", file, line, one.rule, f"{text}; {end}"))
    if not found:
        print(f"ok: no breaking change against {against}")


def _annotation(level: str, file: str, line: int, title: str, text: str) -> str:
    """Return a workflow command of GitHub Actions ("Workflow commands", Setting an error message)."""
    properties = [("file", file), *([("line", str(line))] if line else []), ("title", title)]
    named = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties)
    return f"::{level} {named}::{_escaped(text)}"


def _escaped(text: str, more: str = "") -> str:
    return "".join(f"%{ord(one):02X}" if one in f"%\r\n{more}" else one for one in text)


FORMATS: Mapping[str, Callable[[_Places, Sequence[Break], str], None]] = {
    "text": _text,
    "json": _json,
    "github": _github,
}
"""Format → the function that prints breaks in it."""
