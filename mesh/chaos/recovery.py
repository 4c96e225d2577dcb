"""Recovery times of a mesh after injected faults. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, chain

from mesh.chaos.plan import killed_processes
from mesh.control.text_table import table

__all__ = ["recoveries", "show"]


def recoveries(
    injected: Sequence[tuple[float, str]], accepted: Sequence[tuple[float, float]]
) -> dict[str, list[float]]:
    """Return the recovery times of each target, in seconds.

    A recovery time is that from a fault to the first response to a call that was started after it. Earlier calls tell
    nothing, because their response may have been written before the fault. A fault after which no call was accepted has
    no recovery time.

    Args:
        injected: Time and target of each fault.
        accepted: Time of the start and of the response of each accepted call; all times by one clock.
    """
    ordered = sorted(accepted)
    starts = [start for start, _ in ordered]
    first_responses = list(accumulate((response for _, response in reversed(ordered)), min))[::-1]
    found: dict[str, list[float]] = {}
    for time, target in injected:
        at = bisect_left(starts, time)
        found.setdefault(target, []).extend([first_responses[at] - time] if at < len(first_responses) else [])
    return found


def show(injected: Sequence[tuple[float, str]], found: dict[str, list[float]]) -> str:
    """Return a table of the faults of each target, with median and maximum of its recovery times."""
    rows = []
    for target, times in [*sorted(found.items()), ("all", list(chain(*found.values())))]:
        number = sum(1 for _, one in injected if target in (one, "all"))
        summary = [f"{sorted(times)[len(times) // 2]:.1f} s", f"{max(times):.1f} s"] if times else ["never", "never"]
        rows.append((target, f"{number:,}", *summary))
    rows.append(("of these, processes killed", f"{killed_processes(injected):,}", "", ""))
    return table(("target", "faults", "recovery: median", "maximum"), rows)
