"""Puts a component together: every room's part, handed to each other in one visible place.

Nothing here decides anything; it says what a sidecar and the edge are made of.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import json_format

from mesh import telemetry
from mesh.auth import (
    EDGE,
    Declarations,
    PeerVerifier,
    Signer,
    TokenVerifier,
    authenticate,
    authorize,
    fetch_url,
    identify,
    key_files,
)
from mesh.call import Call, Handler, Layer, chain
from mesh.config.manifest import Manifest, ServiceConfig, WorkersConfig
from mesh.contract.model import Contract
from mesh.control.component.service_events import Eventing, needs_broker
from mesh.control.readiness import TRACES_ENDPOINT
from mesh.edge import Door, Edge
from mesh.edge.grpc.passthrough import tracing
from mesh.errors import Unimplemented
from mesh.events.hops import carry
from mesh.faults import Fault, Faults
from mesh.function import module_spec
from mesh.lambdas.handlers import functions_of, install
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.rpc.client.blocking_channel import BlockingChannel
from mesh.rpc.client.channel import Channel
from mesh.rpc.client.retry import retry
from mesh.rpc.client.target import Target
from mesh.rpc.server.listener import Listener, ListenError
from mesh.sidecar.service_context import ServiceContext
from mesh.sidecar.sidecar import Sidecar
from mesh.sidecar.workers import preload
from mesh.sidecar.workers.worker_pool import WorkerPool
from mesh.sidecar.workers.worker_setup import WorkerSetup
from mesh.telemetry import logs

if TYPE_CHECKING:
    from mesh.database import Database
    from mesh.main_thread import MainThread

__all__ = ["EdgePart", "SidecarPart", "edge", "sidecar"]

log = logging.getLogger("mesh.control")

MARGIN_HEAD = 64 * 2**10
"""Bytes by which the listener's limit of path and headers is above the edge's: the edge refuses with a reason."""
KEYS_TIMEOUT = 5.0
"""Seconds that a fetch of the token issuer's keys may take."""


class Outbound:
    """The last handler of every outbound chain: sends each call to the entry that serves its service.

    Args:
        manifest: Who serves what, and where.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._targets: dict[str, Target] = {}
        self._entries: list[Target] = []
        for entry in manifest.services.values():
            target = Target(entry.addresses, transport=manifest.channel, max_message=int(entry.max_message))
            self._entries.append(target)
            self._targets.update(dict.fromkeys(entry.serves, target))

    def __call__(self, call: Call) -> Awaitable[None]:
        """Send the call where its service is.

        Raises:
            StatusError: How it ended; UNIMPLEMENTED when no entry of mesh.toml serves the service.
        """
        target = self._targets.get(call.method.service)
        if target is None:
            raise Unimplemented(f"no entry of mesh.toml serves {call.method.service}")
        return target(call)

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(target.close() for target in self._entries))


class _Common:
    """What a sidecar and the edge have alike."""

    def __init__(self, manifest: Manifest, contract: Contract, name: str) -> None:
        logs.install(name)
        self.telemetry = telemetry.configure(
            name, version=version("function-mesh"), default_endpoint=os.environ.get(TRACES_ENDPOINT)
        )
        self.serves = {entry: service.serves for entry, service in manifest.services.items()}
        self.identity = manifest.state / "identity"
        self.signer = Signer(name, key_files.load(self.identity, name))
        self.outbound = Outbound(manifest)
        declared = None if name == EDGE else Declarations(contract, self.serves)
        self.onward = self._chain(identify(self.signer, declared))
        own = Channel(self._chain(identify(self.signer)), contract)
        self.tokens = _tokens(manifest, contract, own)

    def _chain(self, identified: Layer) -> Handler:
        return chain(self.telemetry.outbound, identified, carry, retry(), self.outbound)

    async def stop(self) -> None:
        await self.outbound.close()
        await self.telemetry.shutdown()


def _tokens(manifest: Manifest, contract: Contract, channel: Channel) -> TokenVerifier | None:
    auth = manifest.auth
    if auth is None:
        return None
    fetch = fetch_url(auth.jwks) if "://" in auth.jwks else _fetch_method(contract, channel, auth.jwks)
    return TokenVerifier(fetch, issuer=auth.issuer, audience=auth.audience, roles=auth.roles, leeway=auth.leeway)


def _fetch_method(contract: Contract, channel: Channel, name: str) -> Callable[[], Awaitable[bytes]]:
    """Return what fetches the JWK set from a method of the mesh, as JSON."""
    method = contract.methods[f"/{name.lstrip('/')}"]  # `mesh check` and `mesh up` have seen to it
    ask = channel.unary_unary(method.path)

    async def fetch() -> bytes:
        answer = method.output.FromString(await ask(b"", timeout=KEYS_TIMEOUT))
        return json_format.MessageToJson(answer).encode()

    return fetch


# -- a sidecar --


def sidecar(
    manifest: Manifest,
    contract: Contract,
    name: str,
    fd: int | None,
    main: MainThread | None = None,
    *,
    migrate: bool = True,
) -> SidecarPart:
    """Return the sidecar of an entry of mesh.toml; to be called on the running loop.

    Args:
        manifest: The manifest.
        contract: The contract.
        name: The entry.
        fd: A listening socket to serve instead of the address in mesh.toml.
        main: The main thread, when the loop does not run there: its functions are imported and called in it.
        migrate: Bring the database to its newest version at the start.

    Raises:
        Faults: The module, a key or the database's URL is not right.
    """
    return SidecarPart(manifest, contract, name, fd, main, migrate=migrate)


class SidecarPart:
    """A sidecar with its database, its onward channel and its telemetry."""

    def __init__(
        self,
        manifest: Manifest,
        contract: Contract,
        name: str,
        fd: int | None,
        main: MainThread | None,
        *,
        migrate: bool,
    ) -> None:
        entry = manifest.services[name]
        self._place = f"{manifest.file.name} [services.{name}]"
        common = self._common = _Common(manifest, contract, name)
        served = [contract.services[service] for service in entry.serves]
        self._events = Eventing(manifest, contract, name) if needs_broker(manifest, contract, name) else None
        self._pool = (
            None if entry.workers is None else _pool(manifest, contract, entry.workers, common, self._events, name)
        )
        load = partial(functions_of, entry.module, manifest.lambdas.get(name), served)
        functions = self._pool or (load() if main is None else main.do(load))
        self._database = self._open(manifest, entry, name, migrate=migrate)
        channel = Channel(common.onward, contract)
        service = ServiceContext(
            name,
            channel=channel,
            blocking=BlockingChannel(channel, asyncio.get_running_loop()),
            database=self._database,
            settings=entry.settings,
            publisher=self._events.publisher if self._events else None,
        )
        self._sidecar = Sidecar(
            contract,
            entry.serves,
            functions,
            service,
            trace=common.telemetry.inbound,
            authenticate=authenticate(common.tokens, PeerVerifier(common.identity)),
            authorize=authorize(contract, common.serves),
            concurrency_limit=ConcurrencyLimit(entry.concurrency, entry.queue),
            listen=entry.listen,
            fd=fd,
            max_message=int(entry.max_message),
            drain=float(entry.drain),
            threads=main,
        )
        if self._pool is not None:
            self._pool.prepare()

    def _open(self, manifest: Manifest, entry: ServiceConfig, name: str, *, migrate: bool) -> Database | None:
        if not entry.database:
            return None
        from mesh.database import Database, DatabaseError  # noqa: PLC0415 - a third of the imports; the edge has none
        from mesh.events.changes import capture  # noqa: PLC0415 - as above

        nothing = partial(capture.install, service=name, tables=())  # what was captured before the contract changed
        try:
            return Database(
                entry.database,
                migrations=_migrations(manifest, entry),
                migrate=migrate,
                name=name,
                before=(capture.suspend,),
                after=self._events.after if self._events else (nothing,),
                outbox=self._events.outbox if self._events else None,
            )
        except DatabaseError as error:
            raise Faults([Fault(f"{self._place} database", str(error))]) from None

    async def start(self) -> str:
        """Migrate and open the database, then serve.

        Raises:
            Faults: The database cannot be used, or the address cannot be listened on.
        """
        if self._database is not None:
            await self._migrate(self._database)
        if self._events is not None:
            self._events.start(self._database)
        try:
            address = await self._sidecar.start()
        except ListenError as error:
            raise Faults([Fault(f"{self._place} listen", str(error))]) from None
        if self._events is not None:
            self._events.deliver(self._sidecar.deliveries)
        return address

    async def _migrate(self, database: Database) -> None:
        from mesh.database import DatabaseError  # noqa: PLC0415 - loaded already

        try:
            await database.start()
        except DatabaseError as error:
            raise Faults([Fault(f"{self._place} database", str(error))]) from None

    def reload(self) -> None:
        """Have new workers run the code as it is now; only functions in workers can be replaced while they run."""
        if self._pool is None:
            log.warning("%s: its functions run in the sidecar's own process, so new code needs a restart", self._place)
        else:
            self._reloading = asyncio.ensure_future(self._pool.reload())

    async def stop(self) -> None:
        """Drain, then close what functions used, then flush telemetry, also when the module's ``shutdown`` fails."""
        try:
            await self._sidecar.stop(*([self._events.give_back()] if self._events is not None else []))
        finally:
            if self._events is not None:
                await self._events.stop()
            if self._database is not None:
                await self._database.stop()
            await self._common.stop()


def _pool(
    manifest: Manifest, contract: Contract, workers: WorkersConfig, common: _Common, events: Eventing | None, name: str
) -> WorkerPool:
    """Return the workers of an entry."""
    entry = manifest.services[name]
    keep = manifest.state / "preload" / f"{name}.json"
    function = manifest.lambdas.get(name)
    if function is not None:
        install(function)  # what is started from here has its environment
    setup = WorkerSetup(
        name=name,
        module=entry.module,
        function=function,
        serves=entry.serves,
        files=contract.files.SerializeToString(),
        path=tuple(sys.path),
        services=tuple(contract.services),
        preload=preload.find(entry.module, root=manifest.root, stubs=manifest.stubs, keep=keep).modules,
        settings=entry.settings,
        database=entry.database,
        events=events is not None,
        bytecode=str(manifest.state / "bytecode"),
        encoding=sys.stdout.encoding,
    )
    return WorkerPool(
        contract,
        setup,
        workers,
        queue=entry.queue,
        onward=common.onward,
        spans=common.telemetry.export_worker_span,
        metrics=common.telemetry.record_measurement,
        publish=events.broker.publish if events is not None else None,
    )


def _migrations(manifest: Manifest, entry: ServiceConfig) -> Path | None:
    """Return the folder of versions: the one that mesh.toml names, or ``migrations`` beside the module, or none."""
    if entry.migrations:
        return manifest.root / entry.migrations
    spec = module_spec(entry.module)
    beside = Path(spec.origin).parent / "migrations" if spec is not None and spec.origin else None
    return beside if beside is not None and beside.is_dir() else None


# -- the edge --


def edge(manifest: Manifest, contract: Contract, fd: int | None) -> EdgePart:
    """Return the edge; to be called on the running loop.

    Raises:
        Faults: Its key is missing.
    """
    return EdgePart(manifest, contract, fd)


class EdgePart:
    """The edge with its onward chain and its telemetry."""

    def __init__(self, manifest: Manifest, contract: Contract, fd: int | None) -> None:
        table = manifest.edge
        assert table is not None  # noqa: S101 - who runs an edge has checked that there is one
        self._place = f"{manifest.file.name} [edge] listen"
        common = self._common = _Common(manifest, contract, EDGE)
        self._edge = Edge(
            contract,
            handler=common.onward,
            trace=tracing(http=common.telemetry.http, rpc=common.telemetry.inbound),
            authenticate=authenticate(common.tokens, None),
            concurrency_limit=ConcurrencyLimit(table.concurrency, table.queue),
            max_body=int(table.max_body),
            timeout=table.timeout.seconds,
            door=Door.of(table),
            # No limit of a body in the listener: the edge refuses with a reason, and streams have no end.
            listen=lambda app: Listener(
                app,
                table.listen,
                fd=fd,
                grpc=True,
                drain=float(table.drain),
                max_body=0,
                max_head=2 * int(table.max_uri + table.max_headers) + MARGIN_HEAD,
                expire=app.expire,
            ),
        )

    async def start(self) -> str:
        """Serve.

        Raises:
            Faults: The address cannot be listened on.
        """
        try:
            return await self._edge.start()
        except ListenError as error:
            raise Faults([Fault(self._place, str(error))]) from None

    def reload(self) -> None:
        """Do nothing: no code of the user's runs here."""

    async def stop(self) -> None:
        """Drain, then close connections and flush telemetry."""
        await self._edge.stop()
        await self._common.stop()
