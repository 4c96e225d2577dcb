"""Comparison of two contracts: every breaking change, with those that the new contract accepts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mesh.contract.breaks.accepted_breaks import accepted_breaks
from mesh.contract.breaks.break_rules import Break
from mesh.contract.breaks.compared_contracts import ComparedContracts
from mesh.contract.breaks.constraint_breaks import constraint_breaks
from mesh.contract.breaks.message_breaks import message_breaks
from mesh.contract.breaks.method_breaks import service_breaks
from mesh.contract.breaks.trigger_breaks import event_breaks
from mesh.contract.model import Contract

__all__ = ["DEFAULT_TIMEOUT", "breaks", "with_acceptances"]

DEFAULT_TIMEOUT = 30.0
"""Seconds that the edge gives a unary request whose method declares no timeout ([edge] timeout)."""


def breaks(
    old: Contract,
    new: Contract,
    *,
    ignores_unknown_json: bool = False,
    default_timeout: float | None = DEFAULT_TIMEOUT,
) -> list[Break]:
    """Return the breaking changes from one contract to another, by place.

    Args:
        old: The contract that clients, stored events and running services have.
        new: The contract that is to replace it.
        ignores_unknown_json: Whether the edge ignores unknown JSON fields (``[edge] ignore_unknown_fields``).
        default_timeout: ``[edge] timeout``, seconds; None: no limit.
    """
    both = ComparedContracts(old, new, ignores_unknown_json=ignores_unknown_json, default_timeout=default_timeout)
    found = {*service_breaks(both), *event_breaks(both), *message_breaks(both), *constraint_breaks(both)}
    return with_acceptances(sorted(found), old, new)


def with_acceptances(found: Iterable[Break], old: Contract, new: Contract) -> list[Break]:
    """Return the breaks with the reasons for which the new contract accepts them.

    A declaration that the old contract has too was made for an earlier change, so it accepts nothing here.
    """
    earlier = {one.key for one in accepted_breaks(old.files.file, old.pool)}
    accepted = {
        (one.rule, one.element): one.reason
        for one in accepted_breaks(new.files.file, new.pool)
        if one.key not in earlier
    }
    return [replace(one, accepted=accepted.get((one.rule, one.element), "")) for one in found]
