"""Table ``[services.NAME]`` of mesh.toml: placement and size of a service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mesh.address import reachable
from mesh.config.checks import address_faults, bound_faults, buffer_bytes, path_faults, stall_faults, target_faults
from mesh.config.lambda_function import LambdaConfig
from mesh.config.values import Duration, Size
from mesh.config.workers import WorkersConfig, workers_faults
from mesh.database_url import database_faults, parse
from mesh.faults import Fault

__all__ = ["ServiceConfig", "service_faults"]


class ServiceConfig(LambdaConfig, frozen=True):
    """``[services.NAME]``: placement and size of a service.

    Attributes:
        module: Python module of its functions.
        serves: Full names of the gRPC services that it hosts.
        listen: ``host:port`` of its sidecar; port 0 selects a free port.
        address: Addresses for its clients, if not ``listen``: one or more ``host:port``. A name may resolve to several
            addresses and is resolved again from time to time.
        database: URL of its database (``sqlite:///…`` relative to mesh.toml, ``postgresql://…``; docs/databases.md), or
            ``""``.
        migrations: Folder of Alembic versions, relative to mesh.toml; ``""``: the folder ``migrations`` beside the
            module, if it exists.
        concurrency: Calls in progress at most.
        queue: Calls that may wait for a permit; RESOURCE_EXHAUSTED beyond that.
        adaptive: Limit a method below ``concurrency``, and the time in the queue, while its queues are too long.
        max_message: Size limit of a message.
        buffers: Size limit of the requests that come in piece by piece, and of the large responses that are not read
            yet, of all callers; RESOURCE_EXHAUSTED beyond that. None: 24 MiB, or twice ``max_message`` if more.
        stall: Time for which a caller may send nothing of a message, or read nothing of a response; then it is dropped.
        drain: Time that a shutdown waits for calls in progress.
        workers: Processes that run its functions; absent: the sidecar's own process runs them.
        settings: Values for the code of the service (``context.settings``).

    The keys of ``mesh.config.lambda_function.LambdaConfig`` declare a Lambda function. They determine ``module`` and
    ``serves``.
    """

    module: str = ""
    serves: tuple[str, ...] = ()
    listen: str = "127.0.0.1:0"
    address: tuple[str, ...] = ()
    database: str = ""
    migrations: str = ""
    concurrency: int = 1000
    queue: int = 1000
    adaptive: bool = True
    max_message: Size = Size(4 * 2**20)
    buffers: Size | None = None
    stall: Duration = Duration(30)
    drain: Duration = Duration(10)
    workers: WorkersConfig | None = None
    settings: dict[str, Any] = {}  # noqa: RUF012 - msgspec copies it for each instance

    @property
    def buffer_bytes(self) -> int:
        """``buffers``, or what it is by default."""
        return buffer_bytes(self.buffers, self.max_message)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses for its clients."""
        return self.address or (reachable(self.listen),)


def service_faults(service: ServiceConfig, table: str) -> Iterator[Fault]:
    """Check the values of the table."""
    yield from address_faults(f"{table} listen", service.listen)
    for text in service.address:
        yield from target_faults(f"{table} address", text)
    if not service.module:
        yield Fault(table, "the key 'module' is missing")
    if not service.serves:
        yield Fault(f"{table} serves", "name at least one service of the contract")
    yield from bound_faults(service, table, "max_message")
    if service.buffer_bytes < service.max_message:
        yield Fault(f"{table} buffers", f"must be at least max_message, {int(service.max_message)} bytes")
    yield from stall_faults(service.stall, table)
    if service.database:
        faults = list(database_faults(service.database, f"{table} database"))
        yield from faults
        file = None if faults else parse(service.database).file
        if file is not None:
            yield from path_faults(f"{table} database", str(file))
    yield from path_faults(f"{table} migrations", service.migrations)
    if service.workers is not None:
        yield from workers_faults(service.workers, f"{table} workers")
