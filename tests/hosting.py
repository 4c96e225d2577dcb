"""Hosts test functions in a real sidecar, for every suite that needs one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mesh.call import Call, Handler
from mesh.contract import Contract
from mesh.function import Functions
from mesh.gate import Gate
from mesh.sidecar import ServiceContext, Sidecar

ECHO = "conformance.v1.Echo"


async def open_layer(call: Call, next: Handler) -> None:
    await next(call)


def sidecar_of(contract: Contract, module: str = "apps.echo", **options: Any) -> Sidecar:
    """Return a sidecar whose outer layers let everything pass."""
    functions = Functions(module, [contract.services[ECHO]])
    options.setdefault("service", ServiceContext("echo", channel=None, blocking=None))
    layers = dict.fromkeys(("trace", "authenticate", "authorize"), open_layer)
    return Sidecar(contract, [ECHO], functions, **{**layers, "gate": Gate(1000, 1000), "drain": 5.0, **options})


@asynccontextmanager
async def hosted(contract: Contract, module: str = "apps.echo", **options: Any) -> AsyncIterator[str]:
    """Host the functions; gives the address. What is still running at the end is cut off."""
    options.setdefault("drain", 0.0)
    sidecar = sidecar_of(contract, module, **options)
    address = await sidecar.start()
    try:
        yield address
    finally:
        await sidecar.stop()
