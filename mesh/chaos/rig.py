"""Test rig of ``mesh chaos``: makes a mesh with ports, state, databases and a broker of its own for an experiment."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mesh import database_url
from mesh.chaos import endings, kills, plan, requests
from mesh.chaos.endings.choice import doomed
from mesh.chaos.experiment import Experiment, ExperimentLimits
from mesh.chaos.postgresql_server import STOPS, Postgresql
from mesh.chaos.requests import UncountableError
from mesh.config import manifest as manifests
from mesh.config.manifest import Manifest
from mesh.config.values import Duration
from mesh.control import project
from mesh.faults import Fault, Faults

if TYPE_CHECKING:
    from mesh.chaos.kills import Outage
    from mesh.contract.model import Contract

__all__ = ["UNCOUNTABLE", "Options", "run"]

UNCOUNTABLE = 2
"""Exit code: nothing in this mesh can be counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command.

    Attributes:
        duration: Time of fault injection, as ``"60s"``.
        kills: Number of killed processes after which it ends earlier; 0: no such limit.
        rate: Faults a second, at most.
        seed: Seed of the faults and of the words; None: a new one, which is printed.
        only: Kinds of targets and names of services; empty: all targets.
        call: The method; "": chosen by the contract.
        data: Its request; "": made by the contract.
        headers: ``name:value`` of each header of every request.
        event: The event that it publishes; "": the first that its service declares.
        clients: Concurrent calls.
        workers: Run the functions of every service in workers.
        endings: Run the mesh of ``mesh.chaos.endings`` in place of that of mesh.toml.
        postgresql: Give every service that has a database one in a PostgreSQL.
        keep: Folder of state, databases and log; "": a temporary folder, which is kept after a failure only.
        patience: Time for recovery and deliveries at the end, as ``"120s"``.
        people: Attack edge and sidecars meanwhile, beside an honest client.
        uncounted: Methods that do not write for each of their events, so their effects cannot be counted.
    """

    duration: str
    kills: int
    rate: float
    seed: int | None
    only: tuple[str, ...]
    call: str
    data: str
    headers: tuple[str, ...]
    event: str
    clients: int
    workers: bool
    endings: bool
    postgresql: bool
    keep: str
    patience: str
    people: bool
    uncounted: tuple[str, ...]


def run(file: Path | None, options: Options) -> int:
    """Run an experiment with a mesh and print the ledger.

    Args:
        file: mesh.toml; None for the mesh of ``options.endings``.
        options: The options.

    Returns:
        0 when nothing was lost or doubled and nothing failed, else 1; 2 when nothing can be counted.

    Raises:
        Faults: The mesh or the options have faults.
    """
    limits = ExperimentLimits(
        duration=_seconds("--duration", options.duration),
        recovery_timeout=_seconds("--patience", options.patience),
        rate=options.rate,
        kills=options.kills,
        clients=options.clients,
    )
    if options.rate <= 0 or options.clients < 1 or options.kills < 0:
        text = "expected a rate above 0, at least one client, and no negative number of kills"
        raise Faults([Fault("--rate, --clients, --kills", text)])
    with _folder(options.keep) as folder:
        if file is None:
            file = _project_of_endings(folder)
        found = manifests.load(file)
        server = Postgresql(folder / "postgresql") if options.postgresql else None
        environment = _environment(found, folder, server, workers=options.workers)
        os.environ.update(environment)  # for `load`, as for every process of the mesh
        manifest, contract = project.load(file, lambda _: True)
        try:
            experiment = _experiment(manifest, contract, options, limits, server)
        except UncountableError as error:
            print(f"{file}: {error}", file=sys.stderr)
            return UNCOUNTABLE
        try:
            return asyncio.run(_run(experiment, manifest, server))
        except OSError as error:
            raise Faults([Fault("mesh chaos", str(error))]) from None


async def _run(experiment: Experiment, manifest: Manifest, server: Postgresql | None) -> int:
    if server is None:
        return await experiment.run()
    try:
        await server.start([name for name, config in manifest.services.items() if config.database])
        return await experiment.run()
    finally:
        await server.close()


def _seconds(place: str, text: str) -> float:
    try:
        return float(Duration.parse(text))
    except ValueError as error:
        raise Faults([Fault(place, str(error))]) from None


@contextmanager
def _folder(keep: str) -> Iterator[Path]:
    """Yield the folder of state, databases and log."""
    if keep:
        folder = Path(keep).resolve()
        if folder.exists() and any(folder.iterdir()):
            raise Faults([Fault(f"--keep {keep}", "is not empty: its data would be counted too")])
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="mesh-chaos-"))
    try:
        yield folder
    finally:
        if not (folder / "failed").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _project_of_endings(folder: Path) -> Path:
    """Copy the built-in project of ``mesh.chaos.endings``; return its mesh.toml."""
    origin, made = Path(endings.__file__).parent, folder / "project"
    shutil.copytree(origin / "protos", made / "protos")
    for name in ("source", "sink", "steps"):
        os.environ[f"MESH_SERVICES_{name.upper()}_SETTINGS_FOLDER"] = str(folder / "tries")
    return Path(shutil.copy(origin / "mesh.toml", made))


def _environment(found: Manifest, folder: Path, server: Postgresql | None, *, workers: bool) -> dict[str, str]:
    """Return the environment variables that give the mesh ports, state, databases and a broker of its own.

    Raises:
        Faults: mesh.toml names a PostgreSQL database, and ``--postgresql`` is not given.
    """
    words = {"MESH_STATE": str(folder / "state"), "MESH_BROKER": "", "MESH_EVENTS_LISTEN": "127.0.0.1:0"}
    if found.edge is not None:
        words["MESH_EDGE_LISTEN"] = "127.0.0.1:0"
    faults = []
    for name, config in found.services.items():
        prefix = f"MESH_SERVICES_{name.upper().replace('-', '_')}"
        words |= {f"{prefix}_LISTEN": "127.0.0.1:0", f"{prefix}_ADDRESS": ""}
        if config.database and server is not None:
            words[f"{prefix}_DATABASE"] = server.url(name)
        elif config.database and database_url.parse(config.database).file is not None:
            words[f"{prefix}_DATABASE"] = database_url.sqlite_url(folder / f"{name}.db")
        elif config.database:
            text = "its data is never touched; with --postgresql the service gets a database in a PostgreSQL of its own"
            faults.append(Fault(f"{found.file.name} [services.{name}] database", text))
        if workers and config.workers is None and name not in found.lambdas:
            words[f"{prefix}_WORKERS"] = "{ min = 1, max = 2 }"
    if faults:
        raise Faults(faults)
    return words


def _experiment(
    manifest: Manifest, contract: Contract, options: Options, limits: ExperimentLimits, server: Postgresql | None
) -> Experiment:
    """Return the experiment.

    Raises:
        UncountableError: Nothing can be counted.
        Faults: A target does not exist.
    """
    if manifest.edge is None:
        raise UncountableError("it has no [edge], and calls are made through the edge")
    databases = {name: config.database for name, config in manifest.services.items() if config.database}
    publishers = [service for name in databases for service in manifest.services[name].serves]
    workload = requests.choose_workload(
        contract, publishers, options.call, options.data, options.event, options.headers
    )
    outages: dict[str, Outage] = {}
    if server is not None:
        outages[plan.POSTGRESQL] = lambda seconds, way: server.pause(seconds, STOPS[int(way * len(STOPS))])
    else:
        for name, url in databases.items():
            if (file := database_url.parse(url).file) is not None:
                outages[f"{name} {plan.DATABASE}"] = _held(file)
    try:
        targets = plan.targets(
            list(manifest.services),
            edge=True,
            workers=[name for name, config in manifest.services.items() if config.workers is not None],
            databases=[] if server is not None else list(databases),
            postgresql=server is not None,
            only=options.only,
        )
    except ValueError as error:
        raise Faults([Fault("--kill", str(error))]) from None
    seed = secrets.randbelow(2**24) if options.seed is None else options.seed
    called = {method.path.lstrip("/") for method in contract.methods.values() if method.triggers}
    return Experiment(
        manifest, contract, workload, targets, databases, outages, seed, limits,
        uncounted={_named(name, called) for name in options.uncounted}, doomed=doomed if options.endings else None,
        people=options.people,
    )  # fmt: skip


def _named(name: str, called: set[str]) -> str:
    found = [one for one in called if one == name or one.endswith(f".{name}")]
    if len(found) != 1:
        text = f"expected one of the methods that are called for events: {', '.join(sorted(called)) or 'there is none'}"
        raise Faults([Fault(f"--uncounted {name}", text)])
    return found[0]


def _held(file: Path) -> Outage:
    return lambda seconds, _: kills.lock_database(file, seconds)
