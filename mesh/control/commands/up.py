"""``mesh up``: mesh.toml and contract → sockets, keys, trace store and components → one supervised mesh."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from mesh import database_url
from mesh.address import name_of, reachable
from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control import deployment, identity_keys, project, run_state, topology
from mesh.control.readiness import TRACES_ENDPOINT
from mesh.control.supervise import listening_sockets, trace_collector
from mesh.control.supervise.child import Component, Keeper
from mesh.control.supervise.log_output import Console
from mesh.control.supervise.migration_versions import Versions
from mesh.control.supervise.own_broker import BROKER, OwnBroker, own_broker
from mesh.control.supervise.restart_policy import LONGEST
from mesh.control.supervise.supervisor import Supervisor
from mesh.control.table import table
from mesh.faults import Fault, Faults

__all__ = ["run"]

EDGE = "edge"


def run(file: Path, *, raw: bool, reload: bool = False, longest: float = LONGEST) -> int:
    """Run the mesh in the foreground until SIGTERM or SIGINT; returns the exit code.

    Args:
        file: mesh.toml.
        raw: Show log lines as the JSON that they are.
        reload: Run changed files' new code while the mesh runs.
        longest: Seconds that a component that died waits at most for its next start.

    Raises:
        Faults: Of contract, manifest or their combination; an address is taken; the mesh runs already.
    """
    began = time.time()
    manifest, contract = project.load(file)
    faults = deployment.deployment(manifest, contract)
    if faults:
        raise Faults(faults)
    versions = Versions(manifest) if reload else None
    with run_state.claim(manifest.state) as claim, _sockets(manifest) as listeners:
        identity_keys.ensure(manifest)
        broker = own_broker(manifest, contract)
        console = Console(sys.stdout, [*listeners, *([BROKER] if broker else [])], raw=raw)
        return asyncio.run(
            _run(manifest, contract, listeners, broker, console, claim, began=began, versions=versions, longest=longest)
        )


@contextlib.contextmanager
def _sockets(manifest: Manifest) -> Iterator[dict[str, socket.socket]]:
    """Bind every address, or none: name → listening socket."""
    wanted = {name: (f"[services.{name}]", entry.listen) for name, entry in manifest.services.items()}
    if manifest.edge is not None:
        wanted[EDGE] = ("[edge]", manifest.edge.listen)
    with ExitStack() as opened:
        bound: dict[str, socket.socket] = {}
        faults: list[Fault] = []
        for name, (where, listen) in wanted.items():
            try:
                bound[name] = opened.enter_context(
                    listening_sockets.bind(f"{manifest.file.name} {where} listen", listen)
                )
            except Faults as found:
                faults += found.faults
        if faults:
            raise Faults(faults)
        yield bound


async def _run(
    manifest: Manifest,
    contract: Contract,
    listeners: Mapping[str, socket.socket],
    broker: OwnBroker | None,
    console: Console,
    claim: run_state.Claim,
    *,
    began: float,
    versions: Versions | None,
    longest: float,
) -> int:
    addresses = {name: name_of(listener) for name, listener in listeners.items()}
    environment = {**os.environ, **_addresses(manifest, addresses)}
    store = None if trace_collector.collector() else trace_collector.Traces()
    traces_url = ""
    if store is not None:
        traces_url = environment[TRACES_ENDPOINT] = await store.start()
    if broker is not None:
        environment["MESH_BROKER"] = broker.url
    edge_url = f"http://{reachable(addresses[EDGE])}" if EDGE in addresses else ""

    def ready(keepers: Mapping[str, Keeper]) -> None:
        claim.write(
            run_state.Running(os.getpid(), addresses, edge_url, traces_url, broker.url if broker is not None else "")
        )
        console.block(_summary(manifest, contract, keepers, addresses, broker, edge_url, traces_url))

    async def beside(keepers: Mapping[str, Keeper]) -> None:
        assert versions is not None  # noqa: S101 - else nobody calls it
        from mesh.control.supervise.reload import keep_current  # noqa: PLC0415 - only when it was asked for

        await keep_current(manifest, contract, keepers, console, versions=versions, since=began)

    components = _components(manifest, contract, listeners, broker, reload=versions is not None)
    supervisor = Supervisor(components, console, environment, longest=longest)
    try:
        return await supervisor.run(ready, None if versions is None else beside)
    finally:
        if store is not None:
            await store.stop()


def _addresses(manifest: Manifest, bound: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that tell every component where the others are; what mesh.toml says of that stands."""
    return {
        f"MESH_SERVICES_{name.upper().replace('-', '_')}_ADDRESS": reachable(bound[name])
        for name, entry in manifest.services.items()
        if not entry.address
    }


def _components(
    manifest: Manifest,
    contract: Contract,
    listeners: Mapping[str, socket.socket],
    broker: OwnBroker | None,
    *,
    reload: bool,
) -> Iterator[Component]:
    """The broker first; every entry after those that serve what it calls; the edge after all of them."""
    first = () if broker is None else (broker.component.name,)
    if broker is not None:
        yield broker.component
    # -P: a folder called `mesh` where the user stands must not hide the package.
    mesh = (sys.executable, "-P", "-m", "mesh")
    file = ("--file", str(manifest.file))
    for name, needs in topology.dependencies(manifest, contract).items():
        yield Component(
            name=name,
            command=(*mesh, "sidecar", name, *file),
            again=("--no-migrations",) if reload else (),
            listener=listeners[name],
            needs=(*first, *needs),
            drain=manifest.services[name].drain,
            reloads=manifest.services[name].workers is not None,
        )
    if manifest.edge is not None:
        yield Component(
            name=EDGE,
            command=(*mesh, "edge", *file),
            listener=listeners[EDGE],
            needs=tuple(manifest.services),
            drain=manifest.edge.drain,
        )


# -- what the user sees --


def _summary(
    manifest: Manifest,
    contract: Contract,
    keepers: Mapping[str, Keeper],
    addresses: Mapping[str, str],
    broker: OwnBroker | None,
    edge_url: str,
    traces_url: str,
) -> str:
    order = [name for layer in topology.layers(manifest, contract) for name in layer]
    rows = [
        (
            name,
            addresses[name],
            "\n".join(manifest.services[name].serves),
            _database(manifest, manifest.services[name].database),
            str(keepers[name].pid or ""),
        )
        for name in order
    ]
    if edge_url:
        routes = sum(len(method.routes) for method in contract.methods.values())
        rows.append((EDGE, addresses[EDGE], f"{routes} HTTP routes", "", str(keepers[EDGE].pid or "")))
    if broker is not None:
        storage = _shown(manifest, Path(broker.storage))
        rows.insert(0, (BROKER, broker.address, "events (nats-server)", storage, str(keepers[BROKER].pid or "")))
    lines = [table(("service", "address", "serves", "database", "pid"), rows), ""]
    if edge_url:
        lines.append(f"The mesh is ready at {edge_url}")
    else:
        lines.append("The mesh is ready")
    if traces_url:
        lines.append("See where a request went: mesh trace")
    else:
        lines.append(f"Traces go to {trace_collector.collector()}")
    return "\n".join(lines)


def _database(manifest: Manifest, url: str) -> str:
    """Return where a database is, without user and password, and a file as the user wrote it."""
    if not url:
        return ""
    parsed = database_url.parse(url)
    return parsed.where if parsed.file is None else _shown(manifest, parsed.file)


def _shown(manifest: Manifest, path: Path) -> str:
    """Return a path as the user would write it in mesh.toml."""
    return str(path.relative_to(manifest.root)) if path.is_relative_to(manifest.root) else str(path)
