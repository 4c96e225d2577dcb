"""Process of one attacker: attacks until its standard input ends, then writes what it observed as JSON.

Run as ``python -m mesh.chaos.people.attack_process``. The first line of its input names the attack and the target.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.attacks import ATTACKS
from mesh.chaos.people.observed import Observed

__all__ = ["Attacking", "attacking"]

END_TIMEOUT = 20.0
"""Seconds that an attacker may take to close its connections."""


class Attacking:
    """An attack in progress.

    Attributes:
        observed: What the attacker observed; complete when the attack has ended.
    """

    def __init__(self) -> None:
        self.observed = Observed()


@asynccontextmanager
async def attacking(name: str, target: AttackTarget) -> AsyncIterator[Attacking]:
    """Attack a target, from a process of its own, while the body of the ``async with`` runs.

    Raises:
        RuntimeError: The attacker failed by itself.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "mesh.chaos.people.attack_process",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None  # noqa: S101 - as asked for
    attack = Attacking()
    try:
        process.stdin.write(json.dumps({"attack": name, "target": target.as_json()}).encode() + b"\n")
        yield attack
        process.stdin.close()
        out, error = await asyncio.wait_for(process.communicate(), END_TIMEOUT)
        if process.returncode:
            raise RuntimeError(f"the attacker {name} failed: {error.decode(errors='replace')[-2000:]}")
        attack.observed = Observed.from_json(json.loads(out))
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _run() -> None:
    reader = asyncio.StreamReader(2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    order = json.loads(await reader.readline())
    observed = Observed()
    attack = asyncio.ensure_future(ATTACKS[order["attack"]].run(AttackTarget.from_json(order["target"]), observed))
    ended = asyncio.create_task(reader.read())
    await asyncio.wait({attack, ended}, return_when=asyncio.FIRST_COMPLETED)
    if attack.done():
        attack.result()
    attack.cancel()
    await asyncio.gather(attack, return_exceptions=True)
    json.dump(observed.as_json(), sys.stdout)


if __name__ == "__main__":
    asyncio.run(_run())
