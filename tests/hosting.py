"""Hosts test functions in a real sidecar, for every suite that needs one."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mesh.call import Call, Handler
from mesh.config.manifest import WorkersConfig
from mesh.contract.model import Contract
from mesh.errors import Unavailable
from mesh.function import Functions
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.sidecar import ServiceContext, Sidecar
from mesh.sidecar.workers.worker_pool import WorkerPool
from mesh.sidecar.workers.worker_setup import WorkerSetup

ECHO = "conformance.v1.Echo"


async def open_layer(call: Call, next: Handler) -> None:
    await next(call)


def sidecar_of(contract: Contract, module: str = "apps.echo", **options: Any) -> Sidecar:
    """Return a sidecar whose outer layers let everything pass."""
    functions = Functions(module, [contract.services[ECHO]])
    options.setdefault("service", ServiceContext("echo", channel=None, blocking=None))
    layers = dict.fromkeys(("trace", "authenticate", "authorize"), open_layer)
    return Sidecar(
        contract,
        [ECHO],
        functions,
        **{**layers, "concurrency_limit": ConcurrencyLimit(1000, 1000), "drain": 5.0, **options},
    )


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


def pool_of(
    contract: Contract, module: str = "apps.echo", *, onward: Handler | None = None, **options: Any
) -> WorkerPool:
    """Return workers that host a module; ``options`` are of ``Workers``, ``WorkerSetup`` and the pool."""

    async def nowhere(call: Call) -> None:
        raise Unavailable(f"nothing is behind this pool: {call.method.path}")

    serves = options.pop("serves", ECHO)
    setup = WorkerSetup(
        name=serves.split(".")[-1].lower(),
        module=module,
        serves=(serves,),
        files=contract.files.SerializeToString(),
        path=tuple(sys.path),
        preload=options.pop("preload", ("conformance.v1.conformance_pb2_grpc",)),
        settings=options.pop("settings", {}),
        database=options.pop("database", ""),
        events=options.pop("events", False),
    )
    parts = {
        "queue": 1000,
        "spans": lambda _: None,
        "metrics": lambda _: None,
        "publish": None,
        "liveness_timeout": None,
    }
    parts = {name: options.pop(name, default) for name, default in parts.items()}
    return WorkerPool(contract, setup, WorkersConfig(**options), onward=onward or nowhere, **parts)


@asynccontextmanager
async def working(contract: Contract, pool: WorkerPool, **options: Any) -> AsyncIterator[str]:
    """Host a pool; gives the address. What is still running at the end is cut off."""
    layers = dict.fromkeys(("trace", "authenticate", "authorize"), open_layer)
    service = ServiceContext("echo", channel=None, blocking=None)
    sidecar = Sidecar(
        contract,
        [ECHO],
        pool,
        service,
        **{**layers, "concurrency_limit": ConcurrencyLimit(1000, 1000), "drain": 0.0, **options},
    )
    address = await sidecar.start()
    try:
        yield address
    finally:
        await sidecar.stop()
