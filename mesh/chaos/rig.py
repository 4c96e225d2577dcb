"""What ``mesh chaos`` runs: a mesh with ports, state, databases and a broker of its own, and what is called in it."""

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
from mesh.chaos.experiment import Bounds, Trial
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

__all__ = ["UNCOUNTABLE", "Wishes", "run"]

UNCOUNTABLE = 2
"""Exit code: nothing in this mesh can be counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What was asked for.

    Attributes:
        duration: How long it is struck, as ``"60s"``.
        kills: After how many killed processes it ends earlier; 0: not by their number.
        rate: Strikes a second, at most.
        seed: Of all chance; None: a new one, which is printed.
        only: Kinds of targets, or services; empty: everything.
        call: The method; "": found by the contract.
        data: Its request; "": made by the contract.
        headers: ``name:value`` each, of every request.
        event: What it publishes; "": the first that its service declares.
        clients: Calls at once.
        workers: Run the functions of every service in workers.
        endings: Run the mesh of ``mesh.chaos.endings`` in place of that of mesh.toml.
        postgresql: Give every service that has a database one in a PostgreSQL.
        keep: Where state, databases and log stay; "": a temporary folder, which stays only after a failure.
        patience: How long is waited for outboxes and consumers, as ``"120s"``.
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
    uncounted: tuple[str, ...]


def run(file: Path | None, wishes: Wishes) -> int:
    """Run a mesh through it and print the ledger.

    Args:
        file: mesh.toml; None for the mesh of ``wishes.endings``.
        wishes: What was asked for.

    Returns:
        0 when nothing was lost or doubled and nothing failed, 1 when something was, 2 when nothing can be counted.

    Raises:
        Faults: Of the mesh, or of what was asked for.
    """
    bounds = Bounds(
        duration=_seconds("--duration", wishes.duration),
        patience=_seconds("--patience", wishes.patience),
        rate=wishes.rate,
        kills=wishes.kills,
        clients=wishes.clients,
    )
    if wishes.rate <= 0 or wishes.clients < 1 or wishes.kills < 0:
        text = "expected a rate above 0, at least one client, and no negative number of kills"
        raise Faults([Fault("--rate, --clients, --kills", text)])
    with _folder(wishes.keep) as folder:
        if file is None:
            file = _project_of_endings(folder)
        found = manifests.load(file)
        server = Postgresql(folder / "postgresql") if wishes.postgresql else None
        environment = _environment(found, folder, server, workers=wishes.workers)
        os.environ.update(environment)  # for `load`, as for every process of the mesh
        manifest, contract = project.load(file)
        try:
            trial = _trial(manifest, contract, wishes, bounds, server)
        except UncountableError as error:
            print(f"{file}: {error}", file=sys.stderr)
            return UNCOUNTABLE
        try:
            return asyncio.run(_run(trial, manifest, server))
        except OSError as error:
            raise Faults([Fault("mesh chaos", str(error))]) from None


async def _run(trial: Trial, manifest: Manifest, server: Postgresql | None) -> int:
    if server is None:
        return await trial.run()
    try:
        await server.start([name for name, entry in manifest.services.items() if entry.database])
        return await trial.run()
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
            raise Faults([Fault(f"--keep {keep}", "is not empty: what is there already would be counted too")])
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
    """Copy the project whose functions end in every way; returns its mesh.toml."""
    origin, made = Path(endings.__file__).parent, folder / "project"
    shutil.copytree(origin / "protos", made / "protos")
    for name in ("source", "sink", "steps"):
        os.environ[f"MESH_SERVICES_{name.upper()}_SETTINGS_FOLDER"] = str(folder / "tries")
    return Path(shutil.copy(origin / "mesh.toml", made))


def _environment(found: Manifest, folder: Path, server: Postgresql | None, *, workers: bool) -> dict[str, str]:
    """Return the variables that give the mesh ports, state, databases and a broker of its own.

    Raises:
        Faults: A service has a PostgreSQL database, and none is made here.
    """
    words = {"MESH_STATE": str(folder / "state"), "MESH_BROKER": "", "MESH_EVENTS_LISTEN": "127.0.0.1:0"}
    if found.edge is not None:
        words["MESH_EDGE_LISTEN"] = "127.0.0.1:0"
    faults = []
    for name, entry in found.services.items():
        prefix = f"MESH_SERVICES_{name.upper().replace('-', '_')}"
        words |= {f"{prefix}_LISTEN": "127.0.0.1:0", f"{prefix}_ADDRESS": ""}
        if entry.database and server is not None:
            words[f"{prefix}_DATABASE"] = server.url(name)
        elif entry.database and database_url.parse(entry.database).file is not None:
            words[f"{prefix}_DATABASE"] = database_url.sqlite_url(folder / f"{name}.db")
        elif entry.database:
            text = "its data is not touched here; with --postgresql it gets a database in a PostgreSQL made for this"
            faults.append(Fault(f"{found.file.name} [services.{name}] database", text))
        if workers and entry.workers is None and name not in found.lambdas:
            words[f"{prefix}_WORKERS"] = "{ min = 1, max = 2 }"
    if faults:
        raise Faults(faults)
    return words


def _trial(manifest: Manifest, contract: Contract, wishes: Wishes, bounds: Bounds, server: Postgresql | None) -> Trial:
    """Return what is to be done.

    Raises:
        UncountableError: There is nothing to count.
        Faults: What shall be struck is not there.
    """
    if manifest.edge is None:
        raise UncountableError("it has no [edge], and calls are made through the edge")
    databases = {name: entry.database for name, entry in manifest.services.items() if entry.database}
    publishers = [service for name in databases for service in manifest.services[name].serves]
    drive = requests.choose(contract, publishers, wishes.call, wishes.data, wishes.event, wishes.headers)
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
            workers=[name for name, entry in manifest.services.items() if entry.workers is not None],
            databases=[] if server is not None else list(databases),
            postgresql=server is not None,
            only=wishes.only,
        )
    except ValueError as error:
        raise Faults([Fault("--kill", str(error))]) from None
    seed = secrets.randbelow(2**24) if wishes.seed is None else wishes.seed
    called = {method.path.lstrip("/") for method in contract.methods.values() if method.triggers}
    return Trial(
        manifest, contract, drive, targets, databases, outages, seed, bounds,
        uncounted={_named(name, called) for name in wishes.uncounted}, doomed=doomed if wishes.endings else None,
    )  # fmt: skip


def _named(name: str, called: set[str]) -> str:
    found = [one for one in called if one == name or one.endswith(f".{name}")]
    if len(found) != 1:
        text = f"expected one of the methods that are called for events: {', '.join(sorted(called)) or 'there is none'}"
        raise Faults([Fault(f"--uncounted {name}", text)])
    return found[0]


def _held(file: Path) -> Outage:
    return lambda seconds, _: kills.hold(file, seconds)
