"""Faults of a contract or a manifest: each has its place, the error and the correction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault.

    Attributes:
        place: ``protos/login/v1/login.proto:12``, ``mesh.toml [services.login]`` or an environment variable.
        text: Error and correction, one line.
    """

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def _order(fault: Fault) -> tuple[list[tuple[int, str]], str]:
    """Return the key by which faults are sorted: line 9 comes before line 10."""
    parts = re.split(r"(\d+)", fault.place)
    return [(int(part) if part.isdecimal() else 0, part) for part in parts], fault.text


class Faults(Exception):
    """Contract or manifest is invalid. ``str()`` has one line for each fault."""

    faults: tuple[Fault, ...]

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(sorted(set(faults), key=_order))
        super().__init__("\n".join(map(str, self.faults)))
