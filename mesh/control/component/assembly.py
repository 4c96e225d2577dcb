"""Assembly of a component: builds a sidecar and the edge from the parts of all packages.

It decides nothing. Each chain is one visible list.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.address import split
from mesh.auth import (
    EDGE,
    ApiKeyVerifier,
    PeerVerifier,
    authenticate,
    authorize,
    end_when_revoked,
    end_with_key,
    end_with_token,
)
from mesh.call import Layer
from mesh.config.manifest import EdgeConfig, Manifest, ServiceConfig, WorkersConfig
from mesh.contract.model import Contract
from mesh.control.component.edge_tls import EdgeCertificates
from mesh.control.component.service_events import ServiceEvents, needs_broker
from mesh.control.component.shared_parts import SharedParts
from mesh.edge import Edge, OptionalLayers
from mesh.edge.calls import BULKHEADS, share_keys
from mesh.edge.grpc.passthrough import tracing
from mesh.edge.https import HttpsApp, RedirectApp
from mesh.faults import Fault, Faults
from mesh.function import module_spec
from mesh.lambdas.handlers import functions_of, install
from mesh.layers import limit_metrics
from mesh.layers.concurrency import ConcurrencyLimit, ShareKeys
from mesh.rpc.client.blocking_channel import BlockingChannel
from mesh.rpc.client.channel import Channel
from mesh.rpc.server.clients.limits import ClientLimits
from mesh.rpc.server.connection_guard import PublicLimits
from mesh.rpc.server.listener import Listener, ListenError
from mesh.sidecar.service_context import ServiceContext
from mesh.sidecar.sidecar import Sidecar, caller_and_user
from mesh.sidecar.workers import preload
from mesh.sidecar.workers.worker_pool import WorkerPool
from mesh.sidecar.workers.worker_setup import WorkerSetup

if TYPE_CHECKING:
    from mesh.database import Database
    from mesh.main_thread import MainThread

__all__ = ["EdgeComponent", "SidecarComponent", "edge", "sidecar"]

log = logging.getLogger("mesh.control")

HEAD_MARGIN_BYTES = 64 * 2**10
"""Bytes by which the listener's limit of path and headers exceeds the edge's, so the edge refuses with a reason."""


# -- a sidecar --


def sidecar(
    manifest: Manifest,
    contract: Contract,
    name: str,
    fd: int | None,
    main: MainThread | None = None,
    *,
    migrate: bool = True,
) -> SidecarComponent:
    """Return the sidecar of a service. Call it on the running loop.

    Args:
        manifest: The manifest.
        contract: The contract.
        name: The service, by its name in mesh.toml.
        fd: Descriptor of a listening socket to serve instead of the address in mesh.toml.
        main: The main thread, when the loop does not run there. The functions are imported and called in it.
        migrate: Migrate the database to its newest version at the start.

    Raises:
        Faults: The module, a key or the database's URL is not right.
    """
    return SidecarComponent(manifest, contract, name, fd, main, migrate=migrate)


class SidecarComponent:
    """Sidecar with its database, events, workers, outbound channel and telemetry."""

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
        config = manifest.services[name]
        self._place = f"{manifest.file.name} [services.{name}]"
        common = self._common = SharedParts(manifest, contract, name)
        served = [contract.services[service] for service in config.serves]
        self._events = ServiceEvents(manifest, contract, name) if needs_broker(manifest, contract, name) else None
        self._pool = (
            None if config.workers is None else _pool(manifest, contract, config.workers, common, self._events, name)
        )
        load = partial(functions_of, config.module, manifest.lambdas.get(name), served)
        functions = self._pool or (load() if main is None else main.call(load))
        self._database = self._open(manifest, config, name, migrate=migrate)
        channel = Channel(common.onward, contract)
        service = ServiceContext(
            name,
            channel=channel,
            blocking=BlockingChannel(channel, asyncio.get_running_loop()),
            database=self._database,
            settings=config.settings,
            publisher=self._events.publisher if self._events else None,
        )
        watched = frozenset() if manifest.auth is None else manifest.auth.revocation_paths()
        self._sidecar = Sidecar(
            contract,
            config.serves,
            functions,
            service,
            trace=common.telemetry.inbound,
            trace_connect=common.telemetry.connect,
            authenticate=authenticate(common.users.tokens, PeerVerifier(common.identity), common.tls.callers),
            authorize=authorize(contract, common.serves, watched),
            stream_identity=_stream_identity(manifest, common),
            concurrency_limit=_limit(config, caller_and_user, common),
            listen=config.listen,
            fd=fd,
            max_message=int(config.max_message),
            drain=float(config.drain),
            clients=ClientLimits.of_service(config),
            threads=main,
            tls=common.tls.listener,
            watched=watched,
        )
        if self._pool is not None:
            self._pool.prepare()

    def _open(self, manifest: Manifest, config: ServiceConfig, name: str, *, migrate: bool) -> Database | None:
        if not config.database:
            return None
        from mesh.database import Database, DatabaseError  # noqa: PLC0415 - a third of the imports; the edge needs none
        from mesh.events.changes import capture  # noqa: PLC0415 - as above

        # Without events, the triggers of an earlier contract are removed.
        uninstall = partial(capture.install, service=name, tables=())
        try:
            return Database(
                config.database,
                migrations=_migrations(manifest, config),
                migrate=migrate,
                name=name,
                before=(capture.suspend,),
                after=self._events.database_steps if self._events else (uninstall,),
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
        self._common.users.start()
        try:
            address = await self._sidecar.start()
        except ListenError as error:
            raise Faults([Fault(f"{self._place} listen", str(error))]) from None
        self._common.tls.on_renewal(self._sidecar.renew)
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
        """Start new workers with the current code. Functions in the sidecar's own process cannot be replaced."""
        if self._pool is None:
            log.warning("%s: its functions run in the sidecar's own process, so new code needs a restart", self._place)
        else:
            self._reloading = asyncio.ensure_future(self._pool.reload())

    async def stop(self) -> None:
        """Drain, then close events and database, then flush telemetry, also when the module's ``shutdown`` fails."""
        try:
            await self._sidecar.stop(*([self._events.stop_deliveries()] if self._events is not None else []))
        finally:
            if self._events is not None:
                await self._events.stop()
            if self._database is not None:
                await self._database.stop()
            await self._common.stop()


def _pool(
    manifest: Manifest,
    contract: Contract,
    workers: WorkersConfig,
    common: SharedParts,
    events: ServiceEvents | None,
    name: str,
) -> WorkerPool:
    """Return the worker pool of a service."""
    config = manifest.services[name]
    keep = manifest.state / "preload" / f"{name}.json"
    function = manifest.lambdas.get(name)
    if function is not None:
        install(function)  # the fork server and its workers inherit the environment of the Lambda function
    setup = WorkerSetup(
        name=name,
        module=config.module,
        function=function,
        serves=config.serves,
        files=contract.files.SerializeToString(),
        path=tuple(sys.path),
        services=tuple(contract.services),
        preload=preload.find(config.module, root=manifest.root, stubs=manifest.stubs, keep=keep).modules,
        settings=config.settings,
        database=config.database,
        events=events is not None,
        bytecode=str(manifest.state / "bytecode"),
        encoding=sys.stdout.encoding,
    )
    return WorkerPool(
        contract,
        setup,
        workers,
        queue=config.queue,
        onward=common.onward,
        spans=common.telemetry.export_worker_span,
        metrics=common.telemetry.record_measurement,
        publish=events.broker.publish if events is not None else None,
        liveness_timeout=manifest.liveness.seconds,
    )


def _limit(
    config: EdgeConfig | ServiceConfig, share_keys: ShareKeys, common: SharedParts, bulkheads: tuple[int, ...] = ()
) -> ConcurrencyLimit:
    """Return the concurrency limit of a component, with its metrics. Before workers it has no queue; the pool has."""
    queue = 0 if isinstance(config, ServiceConfig) and config.workers is not None else config.queue
    limit = ConcurrencyLimit(config.concurrency, queue, share_keys, bulkheads, adaptive=config.adaptive)
    limit_metrics.register(limit, common.telemetry.meter_provider.get_meter("mesh.layers"))
    return limit


def _migrations(manifest: Manifest, config: ServiceConfig) -> Path | None:
    """Return the folder of migration versions: the one of mesh.toml, or ``migrations`` beside the module, or None."""
    if config.migrations:
        return manifest.root / config.migrations
    spec = module_spec(config.module)
    beside = Path(spec.origin).parent / "migrations" if spec is not None and spec.origin else None
    return beside if beside is not None and beside.is_dir() else None


def _stream_identity(manifest: Manifest, common: SharedParts) -> Sequence[Layer]:
    """Return the layers that end streams when the token or the API key of their caller expires or is revoked."""
    issuers = () if manifest.auth is None else manifest.auth.places()
    expiry = end_with_token({config.issuer: float(config.leeway) for _, config in issuers})
    users = common.users
    by_key = [end_with_key(users.tokens)] if isinstance(users.tokens, ApiKeyVerifier) else []
    return [expiry, *([end_when_revoked(users.revocations)] if users.revocations else []), *by_key]


# -- the edge --


def edge(manifest: Manifest, contract: Contract, fd: int | None) -> EdgeComponent:
    """Return the edge. Call it on the running loop.

    Raises:
        Faults: Its key is missing.
    """
    return EdgeComponent(manifest, contract, fd)


class EdgeComponent:
    """Edge with its outbound chain and telemetry."""

    def __init__(self, manifest: Manifest, contract: Contract, fd: int | None) -> None:
        table = manifest.edge
        assert table is not None  # noqa: S101 - `process.run` has checked that there is one
        self._place = f"{manifest.file.name} [edge] listen"
        common = self._common = SharedParts(manifest, contract, EDGE)
        clients, tokens = ClientLimits.of_edge(table), common.users.tokens
        tls = table.tls
        self._certificates = None if tls is None else EdgeCertificates(tls)
        self._edge = Edge(
            contract,
            handler=common.onward,
            trace=tracing(http=common.telemetry.http, grpc=common.telemetry.inbound, connect=common.telemetry.connect),
            authenticate=authenticate(tokens, None),
            concurrency_limit=_limit(table, share_keys, common, BULKHEADS),
            stream_limit=ConcurrencyLimit(table.streams, 0, share_keys),
            max_body=int(table.max_body),
            timeout=table.timeout.seconds,
            clients=clients,
            layers=OptionalLayers.of(table, tokens.rate_of if isinstance(tokens, ApiKeyVerifier) else None),
            # The listener has no limit of a body: the edge refuses with a reason, and streams may be endless.
            listen=lambda app: Listener(
                app if tls is None else HttpsApp(app, tls.hsts),
                table.listen,
                fd=fd,
                grpc=True,
                drain=float(table.drain),
                max_body=0,
                max_head=2 * int(table.max_uri + table.max_headers) + HEAD_MARGIN_BYTES,
                expire=app.expire,
                public=PublicLimits(
                    streams=table.streams_per_connection,
                    connections=table.connections,
                    stall=float(table.stall),
                    max_frame=int(table.max_body) + HEAD_MARGIN_BYTES,
                    proxies=tuple(ip_network(proxy) for proxy in table.trusted_proxies),
                    refused=clients.count,
                ),
                tls=None if self._certificates is None else self._certificates.files,
            ),
        )
        self._redirect: Listener | None = None
        if tls is not None and tls.redirect:
            self._redirect_app = RedirectApp(self._edge.app, split(table.listen)[1])
            self._redirect = Listener(self._redirect_app, tls.redirect, grpc=False, drain=0.0)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Serve.

        Raises:
            Faults: The address cannot be listened on.
        """
        self._common.users.start()
        try:
            address = await self._edge.start()
            if self._redirect is not None:
                self._redirect_app.port = split(address)[1]
                await self._redirect.start()
        except ListenError as error:
            raise Faults([Fault(self._place, str(error))]) from None
        if self._certificates is not None:
            self._watching = asyncio.ensure_future(self._certificates.watch(self._edge.renew))
        return address

    def reload(self) -> None:
        """Do nothing: no code of the user runs in the edge."""

    async def stop(self) -> None:
        """Drain, then close connections and flush telemetry."""
        if self._watching is not None:
            self._watching.cancel()
        if self._redirect is not None:
            await self._redirect.stop()
        await self._edge.stop()
        await self._common.stop()
