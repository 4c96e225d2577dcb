"""Shutdown of delivery while the broker hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

from broker_process import BrokerProcess
from delivering import delivering, happened, publish, until
from google.protobuf.empty_pb2 import Empty
from suspend import suspend

from mesh.contract.model import Contract


async def test_a_broker_that_hangs_holds_up_no_stop(contract: Contract, new_nats: Callable[..., BrokerProcess]) -> None:
    server, seen = new_nats(), []

    async def on_happened(request: Any, context: Any) -> Empty:
        seen.append(request.number)
        return Empty()

    try:
        async with delivering(contract, server.url, {"on_happened": on_happened}) as replica:
            await publish(replica.broker, *(happened(f"k{number}", number) for number in range(20)))
            await until(lambda: len(seen) == 20)
            suspend(server.pid)
            async with asyncio.timeout(6):  # `mesh up` kills after the drain and four seconds
                await replica.delivery.stop(0)
    finally:
        os.kill(server.pid, signal.SIGCONT)
