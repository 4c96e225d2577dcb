"""``mesh up``: runs a whole mesh on this machine, with sockets, keys, trace store, broker and components."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from mesh import database_url, private_files
from mesh.address import bound_address, reachable
from mesh.config import secrets
from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control import deployment, file_rights, identity_keys, mesh_certificates, project, run_state, topology
from mesh.control.component.certificate_keeper import CertificateKeeper
from mesh.control.readiness import TRACES_ENDPOINT_VARIABLE, TRACES_SECRET_VARIABLE
from mesh.control.supervise import child_environment, listening_sockets, trace_collector
from mesh.control.supervise.child import Child, ComponentSpec
from mesh.control.supervise.local_broker import BROKER, LocalBroker, keep_certificate, local_broker
from mesh.control.supervise.log_output import LogOutput
from mesh.control.supervise.migration_versions import MigrationVersions
from mesh.control.supervise.restart_policy import MAX_RESTART_DELAY
from mesh.control.supervise.supervisor import Supervisor
from mesh.control.text_table import table
from mesh.faults import Fault, Faults

__all__ = ["run"]

EDGE = "edge"


def run(file: Path, *, raw: bool, reload: bool = False, max_restart_delay: float = MAX_RESTART_DELAY) -> int:
    """Run the mesh in the foreground until SIGTERM or SIGINT; returns the exit code.

    Args:
        file: mesh.toml.
        raw: Show log lines as JSON.
        reload: Run the new code of changed files while the mesh runs.
        max_restart_delay: Seconds that the restart of a component is delayed at most.

    Raises:
        Faults: Contract or manifest has faults, an address is taken, or the mesh runs already.
    """
    started_at = time.time()
    private_files.disable_core_dumps()
    manifest, contract = project.load(file, lambda _: True)
    faults = deployment.combined_faults(manifest, contract)
    if faults:
        raise Faults(faults)
    versions = MigrationVersions(manifest) if reload else None
    with run_state.claim(manifest.state) as claim, _sockets(manifest) as listeners:
        identity_keys.ensure(manifest)
        keeper = CertificateKeeper(manifest) if mesh_certificates.signs_here(manifest) else None
        broker = local_broker(manifest, contract)
        output = LogOutput(sys.stdout, [*listeners, *([BROKER] if broker else [])], raw=raw)
        for text in file_rights.state_warnings(manifest):
            output.supervisor_line(text)
        if plain := manifest.plain_text():
            output.supervisor_line(f'tls = "off": calls of {", ".join(plain)} are plain text on the network')
        return asyncio.run(
            _run(
                manifest,
                contract,
                listeners,
                broker,
                keeper,
                output,
                claim,
                started_at=started_at,
                versions=versions,
                max_restart_delay=max_restart_delay,
            )
        )


@contextlib.contextmanager
def _sockets(manifest: Manifest) -> Iterator[dict[str, socket.socket]]:
    """Bind the address of every component, or none: name → listening socket."""
    wanted = {name: (f"[services.{name}]", config.listen) for name, config in manifest.services.items()}
    if manifest.edge is not None:
        wanted[EDGE] = ("[edge]", manifest.edge.listen)
    with ExitStack() as opened:
        bound: dict[str, socket.socket] = {}
        faults: list[Fault] = []
        for name, (key, listen) in wanted.items():
            try:
                place = f"{manifest.file.name} {key} listen"
                bound[name] = opened.enter_context(listening_sockets.bind(place, listen))
            except Faults as found:
                faults += found.faults
        if faults:
            raise Faults(faults)
        yield bound


async def _run(
    manifest: Manifest,
    contract: Contract,
    listeners: Mapping[str, socket.socket],
    broker: LocalBroker | None,
    keeper: CertificateKeeper | None,
    output: LogOutput,
    claim: run_state.Claim,
    *,
    started_at: float,
    versions: MigrationVersions | None,
    max_restart_delay: float,
) -> int:
    addresses = {name: bound_address(listener) for name, listener in listeners.items()}
    environment = {**os.environ, **_addresses(manifest, addresses)}
    store = None if trace_collector.external_collector() else trace_collector.TraceCollector()
    traces_url = ""
    if store is not None:
        traces_url = environment[TRACES_ENDPOINT_VARIABLE] = await store.start()
        environment[TRACES_SECRET_VARIABLE] = store.secret
    if broker is not None:
        environment["MESH_BROKER"] = broker.url
        if broker.certificate is not None:
            environment["MESH_EVENTS_CA"] = str(broker.certificate.roots)
    scheme = "https" if manifest.edge is not None and manifest.edge.tls is not None else "http"
    edge_url = f"{scheme}://{reachable(addresses[EDGE])}" if EDGE in addresses else ""

    tasks = [] if keeper is None else [asyncio.create_task(keeper.run(output.supervisor_line))]

    def on_ready(children: Mapping[str, Child]) -> None:
        if broker is not None and broker.certificate is not None:
            tasks.append(asyncio.create_task(keep_certificate(children[BROKER], broker.certificate.certificate)))
        claim.write(
            run_state.RunState(
                os.getpid(),
                addresses,
                edge_url,
                traces_url,
                "" if store is None else store.secret,
                broker.url if broker is not None else "",
            )
        )
        output.block(_summary(manifest, contract, children, addresses, broker, edge_url, traces_url))

    async def watch_files(children: Mapping[str, Child]) -> None:
        assert versions is not None  # noqa: S101 - it is called with --reload only
        from mesh.control.supervise.reload import reload_on_change  # noqa: PLC0415 - only --reload needs it

        await reload_on_change(manifest, contract, children, output, versions=versions, since=started_at)

    components = _components(manifest, contract, listeners, broker, reload=versions is not None)
    supervisor = Supervisor(
        components,
        output,
        environment,
        max_restart_delay=max_restart_delay,
        liveness_timeout=manifest.liveness.seconds,
    )
    try:
        return await supervisor.run(on_ready, None if versions is None else watch_files)
    finally:
        for task in tasks:
            task.cancel()
        if store is not None:
            await store.stop()


def _addresses(manifest: Manifest, bound: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables with the addresses of services whose ``address`` mesh.toml does not set."""
    return {
        f"MESH_SERVICES_{name.upper().replace('-', '_')}_ADDRESS": reachable(bound[name])
        for name, config in manifest.services.items()
        if not config.address
    }


def _components(
    manifest: Manifest,
    contract: Contract,
    listeners: Mapping[str, socket.socket],
    broker: LocalBroker | None,
    *,
    reload: bool,
) -> Iterator[ComponentSpec]:
    """Yield the components: the broker, the services with their dependencies, the edge, which needs them all."""
    first = () if broker is None else (broker.component.name,)
    if broker is not None:
        yield broker.component
    # -P: a folder `mesh` in the current directory must not hide the package.
    mesh = (sys.executable, "-P", "-m", "mesh")
    file = ("--file", str(manifest.file))
    services = tuple(manifest.services)
    for name, needs in topology.dependencies(manifest, contract).items():
        yield ComponentSpec(
            name=name,
            command=(*mesh, "sidecar", name, *file),
            restart_arguments=("--no-migrations",) if reload else (),
            listener=listeners[name],
            environment=partial(
                child_environment.for_service, name=name, services=services, secrets=_secret_variables(manifest, name)
            ),
            needs=(*first, *needs),
            drain=manifest.services[name].drain,
            reloads=manifest.services[name].workers is not None,
        )
    if manifest.edge is not None:
        yield ComponentSpec(
            name=EDGE,
            command=(*mesh, "edge", *file),
            listener=listeners[EDGE],
            environment=partial(
                child_environment.for_edge, services=services, secrets=_secret_variables(manifest, EDGE)
            ),
            needs=tuple(manifest.services),
            drain=manifest.edge.drain,
        )


def _secret_variables(manifest: Manifest, component: str) -> frozenset[str]:
    """Return the environment variables of the secrets that a component uses."""
    names = manifest.secret_names
    return frozenset(map(secrets.variable, names.get("", frozenset()) | names.get(component, frozenset())))


# -- the table that is shown when the mesh is ready --


def _summary(
    manifest: Manifest,
    contract: Contract,
    children: Mapping[str, Child],
    addresses: Mapping[str, str],
    broker: LocalBroker | None,
    edge_url: str,
    traces_url: str,
) -> str:
    order = [name for group in topology.start_order(manifest, contract) for name in group]
    rows = [
        (
            name,
            addresses[name],
            "\n".join(manifest.services[name].serves),
            _database(manifest, manifest.services[name].database),
            str(children[name].pid or ""),
        )
        for name in order
    ]
    if edge_url:
        routes = sum(len(method.routes) for method in contract.methods.values())
        rows.append((EDGE, addresses[EDGE], f"{routes} HTTP routes", "", str(children[EDGE].pid or "")))
    if broker is not None:
        storage = _shown(manifest, Path(broker.storage))
        rows.insert(0, (BROKER, broker.address, "events (nats-server)", storage, str(children[BROKER].pid or "")))
    lines = [table(("service", "address", "serves", "database", "pid"), rows), ""]
    if edge_url:
        lines.append(f"The mesh is ready at {edge_url}")
    else:
        lines.append("The mesh is ready")
    if traces_url:
        lines.append("See where a request went: mesh trace")
    else:
        lines.append(f"Traces go to {trace_collector.external_collector()}")
    return "\n".join(lines)


def _database(manifest: Manifest, url: str) -> str:
    """Return the place of a database without user and password; a file relative to the project."""
    if not url:
        return ""
    parsed = database_url.parse(url)
    return parsed.where if parsed.file is None else _shown(manifest, parsed.file)


def _shown(manifest: Manifest, path: Path) -> str:
    """Return a path relative to the project, as in mesh.toml, if it lies there."""
    return str(path.relative_to(manifest.root)) if path.is_relative_to(manifest.root) else str(path)
