"""Faults of a contract or a manifest: what is wrong, where, and what would be right, all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault.

    Attributes:
        place: Where it stands: ``protos/login/v1/login.proto:12``, ``mesh.toml [services.login]``, an environment
            variable.
        text: What is wrong and what would be right, one line.
    """

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


class Faults(Exception):
    """The contract or the manifest cannot be used. ``str()`` is one line for each fault."""

    faults: tuple[Fault, ...]

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(sorted(set(faults)))
        super().__init__("\n".join(map(str, self.faults)))
