"""Subscriber in a process of its own: event number 0 kills it (SIGKILL); it prints the events of its calls.

python ended.py BROKER
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent / ".mesh" / "test-stubs")]

from delivering import delivering  # noqa: E402 - the path comes first
from google.protobuf.empty_pb2 import Empty  # noqa: E402 - the path comes first

from mesh.contract import loader, protoc  # noqa: E402 - the path comes first
from mesh.events.consume.delivery import DeliverySettings  # noqa: E402 - the path comes first
from mesh.events.consume.outcome import RetryLimits  # noqa: E402 - the path comes first


async def on_happened(request: Any, context: Any) -> Empty:
    sys.stdout.write(f"{request.number}\n")
    sys.stdout.flush()
    if request.number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return Empty()


async def run(broker: str) -> None:
    root = HERE.parent
    contract = loader.read(protoc.load([root / "protos"], root.parent / ".mesh" / "test-stubs"))
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    once = DeliverySettings(limits=RetryLimits(attempts=1))
    async with delivering(contract, broker, {"on_happened": on_happened}, settings=once):
        await told.wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
