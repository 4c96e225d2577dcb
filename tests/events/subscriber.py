"""Subscriber in a process of its own, to be killed: inserts every delivered event into a database.

python subscriber.py BROKER DATABASE
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent / ".mesh" / "test-stubs")]

from delivering import delivering  # noqa: E402 - the path comes first
from google.protobuf.empty_pb2 import Empty  # noqa: E402 - the path comes first
from sqlalchemy import text  # noqa: E402 - the path comes first

from mesh.contract import loader, protoc  # noqa: E402 - the path comes first
from mesh.database import Database  # noqa: E402 - the path comes first
from mesh.events.consume import inbox  # noqa: E402 - the path comes first


async def on_happened(request: Any, context: Any) -> Empty:
    async with context.transaction() as tx:
        await asyncio.sleep(0.002)
        await tx.execute(
            text("INSERT INTO seen (key, number) VALUES (:key, :number)"),
            {"key": request.key, "number": request.number},
        )
    return Empty()


async def run(broker: str, url: str) -> None:
    root = HERE.parent
    contract = loader.read(protoc.load([root / "protos"], root.parent / ".mesh" / "test-stubs"))
    database = Database(url, migrations=None, name="subscriber", after=[inbox.prepare])
    await database.start()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    try:
        async with delivering(contract, broker, {"on_happened": on_happened}, database=database):
            await told.wait()
    finally:
        await database.stop()


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
