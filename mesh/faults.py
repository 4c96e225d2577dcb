"""Faults of a contract or a manifest: each has its place, the error and the correction."""

from __future__ import annotations

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


class Faults(Exception):
    """Contract or manifest is invalid. ``str()`` has one line for each fault."""

    faults: tuple[Fault, ...]

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(sorted(set(faults)))
        super().__init__("\n".join(map(str, self.faults)))
