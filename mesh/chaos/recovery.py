"""How long a mesh took to work again after each strike. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, chain

from mesh.chaos.plan import kills
from mesh.control.text_table import table

__all__ = ["recoveries", "show"]


def recoveries(struck: Sequence[tuple[float, str]], accepted: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    """Return, for each target, the seconds from each strike to the first answer to a call that was begun after it.

    Calls that were under way tell nothing: their answer may have been written already. A strike after which no call was
    accepted has none.

    Args:
        struck: When, and what.
        accepted: When each accepted call was begun, and when it was answered; all times by one clock.
    """
    ordered = sorted(accepted)
    begun = [one for one, _ in ordered]
    firsts = list(accumulate((answered for _, answered in reversed(ordered)), min))[::-1]
    found: dict[str, list[float]] = {}
    for when, target in struck:
        at = bisect_left(begun, when)
        found.setdefault(target, []).extend([firsts[at] - when] if at < len(firsts) else [])
    return found


def show(struck: Sequence[tuple[float, str]], found: dict[str, list[float]]) -> str:
    """Return how often each target was struck, with median and maximum of its recoveries, as text."""
    rows = []
    for target, times in [*sorted(found.items()), ("all", list(chain(*found.values())))]:
        number = sum(1 for _, one in struck if target in (one, "all"))
        middle = [f"{sorted(times)[len(times) // 2]:.1f} s", f"{max(times):.1f} s"] if times else ["never", "never"]
        rows.append((target, f"{number:,}", *middle))
    rows.append(("of these, processes killed", f"{kills(struck):,}", "", ""))
    return table(("struck", "times", "works again: median", "at most"), rows)
