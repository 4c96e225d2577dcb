"""Rotation of the root: state machine of its steps, and the leaves that each step waits for. Pure.

1. ``STEADY``: one root is trusted and signs.
2. ``ADDED``: a second root is trusted. The first one signs until every holder of a leaf trusts the second.
3. ``SIGNING``: the second root signs. The first one stays trusted until no leaf of it is in use.
4. ``STEADY`` again: only the second root is trusted.

A component gets the trusted roots together with each leaf. So it trusts the second root if its leaf was issued in the
step ``ADDED`` or later. Each step makes all leaves due for renewal at once, and the next step waits until they have
been renewed or have expired, and for ``SETTLE_TIME``, in which components take the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from mesh.certificates.authority import BACKDATE
from mesh.certificates.spiffe import CertificateError

__all__ = ["SETTLE_TIME", "IssuedLeaf", "RotationState", "Step", "advance", "next_change", "waiting_for"]

SETTLE_TIME = timedelta(seconds=30)
"""Time after the last renewal of a step. Components look at their files each second."""


class Step(StrEnum):
    """Step of a rotation."""

    STEADY = "steady"
    ADDED = "added"
    SIGNING = "signing"


@dataclass(frozen=True, slots=True)
class IssuedLeaf:
    """Leaf that may be in use.

    Attributes:
        name: Name of its component.
        root: Identifier of the root that signed it.
        round: The authority's round at its issue.
        issued: Time of its issue.
        expires: End of its validity.
    """

    name: str
    root: str
    round: int
    issued: datetime
    expires: datetime


@dataclass(frozen=True, slots=True)
class RotationState:
    """State of an authority.

    Attributes:
        signing: Identifier of the root that signs.
        trusted: Identifiers of the trusted roots; the oldest first.
        step: The step.
        round: Number of steps so far. Leaves of an earlier round are due for renewal. A clock can be set back; this
            number grows.
        since: Time at which the step began; None: that of the creation.
        leaves: The leaves that may be in use, by serial number.
    """

    signing: str
    trusted: tuple[str, ...]
    step: Step = Step.STEADY
    round: int = 0
    since: datetime | None = None
    leaves: Mapping[int, IssuedLeaf] = field(default_factory=dict)

    def with_leaf(self, serial: int, leaf: IssuedLeaf, replaced: int | None) -> RotationState:
        """Return the state after an issue. The replaced leaf, and leaves that have expired, are dropped."""
        kept = {
            number: one
            for number, one in self.leaves.items()
            if _in_use(one, leaf.issued) and not (number == replaced and one.name == leaf.name)
        }
        return replace(self, leaves={**kept, serial: leaf})

    def to_json(self) -> str:
        """Return the state as JSON."""
        value = asdict(self)
        value["leaves"] = {str(serial): asdict(leaf) for serial, leaf in self.leaves.items()}
        return json.dumps(value, default=datetime.isoformat, indent=1)

    @classmethod
    def from_json(cls, text: str) -> RotationState:
        """Return the state that ``to_json`` wrote.

        Raises:
            CertificateError: The text is malformed.
        """
        try:
            value = json.loads(text)
            leaves = {
                int(serial): IssuedLeaf(
                    str(one["name"]), str(one["root"]), int(one["round"]), _time(one["issued"]), _time(one["expires"])
                )
                for serial, one in value["leaves"].items()
            }
            trusted = tuple(map(str, value["trusted"]))
            since = None if value["since"] is None else _time(value["since"])
            return cls(str(value["signing"]), trusted, Step(value["step"]), int(value["round"]), since, leaves)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CertificateError(f"the state of the authority is malformed: {error}") from None


def waiting_for(state: RotationState, now: datetime) -> Iterator[IssuedLeaf]:
    """Yield the leaves that the next step waits for: those in use of an earlier round."""
    if state.step is Step.STEADY:
        return
    for leaf in state.leaves.values():
        if _in_use(leaf, now) and leaf.round < state.round:
            yield leaf


def next_change(state: RotationState, now: datetime) -> datetime | None:
    """Return the earliest time of the next step if no further leaf is renewed; None: there is no next step."""
    if state.step is Step.STEADY:
        return None
    waiting = [leaf.expires + BACKDATE for leaf in waiting_for(state, now)]
    issued = [leaf.issued for leaf in state.leaves.values() if _in_use(leaf, now)]
    if waiting:
        return max(waiting)
    return max([*issued, *([] if state.since is None else [state.since])], default=now) + SETTLE_TIME


def advance(state: RotationState, fresh: str, now: datetime) -> RotationState:
    """Return the state after the next step. The caller decides whether it is safe (``waiting_for``).

    Args:
        state: The state.
        fresh: Identifier of the new root, for the first step.
        now: The time.
    """
    begun = replace(state, round=state.round + 1, since=now)
    match state.step:
        case Step.STEADY:
            return replace(begun, trusted=(*state.trusted, fresh), step=Step.ADDED)
        case Step.ADDED:
            return replace(begun, signing=state.trusted[-1], step=Step.SIGNING)
        case Step.SIGNING:
            return replace(begun, trusted=(state.signing,), step=Step.STEADY)


def _in_use(leaf: IssuedLeaf, now: datetime) -> bool:
    """Return whether a verifier may accept the leaf. Its clock may be behind by ``BACKDATE``."""
    return leaf.expires + BACKDATE > now


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
