"""Campaign of ``mesh chaos --people``: one attack after the other, while an honest client is served."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from mesh.chaos.people.attack_process import attacking
from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.attacks import possible
from mesh.chaos.people.honest_client import HonestClient, HonestRequest
from mesh.control.text_table import table

__all__ = ["MIN_SUCCESS_PERCENT", "Campaign"]

MIN_SUCCESS_PERCENT = 99.0
"""Share of the honest requests that must succeed."""
ATTACK_SECONDS = 5.0
"""Seconds of one attack."""
HONEST_RATE = 10.0
"""Honest requests a second."""
HONEST_TIMEOUT = 30.0
"""Seconds within which an honest request must succeed, with its retries: longer than a restart takes."""
COSTLY_RATE = 100.0
"""Costly requests a second that are offered: more than a function can serve that hashes passwords."""


class Campaign:
    """Attackers of a mesh, and an honest client beside them.

    Args:
        targets: The edge, and each sidecar.
        request: A request without side effects, for the honest client.
        seed: Seed of the order of the attacks.
        bodies: Makes so many bodies for costly requests that were never used before.
    """

    def __init__(
        self,
        targets: Sequence[AttackTarget],
        request: HonestRequest,
        seed: int,
        bodies: Callable[[int], tuple[str, ...]],
    ) -> None:
        self._targets = targets
        self._chance = random.Random(seed)  # noqa: S311 - the order must be repeatable
        self._bodies = bodies
        self._honest = HonestClient(replace(targets[0], source=""), [request], timeout=HONEST_TIMEOUT, retry=True)
        self._observed: dict[str, Counter[str]] = {}

    async def attack(self) -> None:
        """Attack until it is cancelled.

        Raises:
            RuntimeError: An attacker failed by itself.
        """
        for name, target in self._plan():
            if name == "oversubscription":
                offered = self._bodies(int(COSTLY_RATE * ATTACK_SECONDS))
                target = replace(target, rate=COSTLY_RATE, costly_bodies=offered, reuse=False)  # noqa: PLW2901
            async with attacking(name, target) as attack:
                await asyncio.sleep(ATTACK_SECONDS)
            self._observed.setdefault(name, Counter()).update(attack.observed.counts, attacks=1)

    async def serve(self) -> None:
        """Send honest requests until ``end``."""
        await self._honest.run(rate=HONEST_RATE)

    def end(self) -> None:
        """Send no further honest request."""
        self._honest.stop()

    @property
    def held(self) -> bool:
        """Whether the honest client was served."""
        return self._honest.served.success >= MIN_SUCCESS_PERCENT

    def show(self) -> str:
        """Return a table of the attacks, and the service that the honest client got."""
        rows = []
        for name, counts in sorted(self._observed.items()):
            seen = Counter({what: number for what, number in counts.items() if what not in ("attacks", "requests")})
            text = ", ".join(f"{what} {number:,}" for what, number in seen.most_common(4))
            rows.append((name, f"{counts['attacks']:,}", f"{counts['requests']:,}", text))
        served = self._honest.served
        failed = "".join(f"; {number:,} times {what}" for what, number in served.failures.most_common())
        return (
            f"{table(('attack', 'times', 'requests', 'observed'), rows)}\n\n"
            f"honest requests served: {len(served.times):,} of {len(served.calls):,} ({served.success:.2f} %), "
            f"p50 {served.percentile(0.5):,.0f} ms, p99 {served.percentile(0.99):,.0f} ms{failed}"
        )

    def _plan(self) -> Iterator[tuple[str, AttackTarget]]:
        """Yield attacks for ever: each attack of each target once, then again in another order."""
        every = [(name, target) for target in self._targets for name in possible(target)]
        while True:
            yield from self._chance.sample(every, len(every))
