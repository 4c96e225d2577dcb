"""Reload of ``mesh up --reload``: runs the new code of changed files without losing a call.

- A changed Python file restarts the services that it belongs to. A service with workers gets SIGHUP: new workers run
  the new code, then the old ones drain. A service without workers gets a new process beside the old one, on the same
  socket; the old process drains once the new one is ready.
- A changed .proto file makes new stubs and a new contract, and every component gets a new process.
- A changed mesh.toml, or document with the routes of a Lambda function, does the same. It must keep the services, the
  addresses and the databases; the supervisor cannot change those.
- A changed migration version restarts nothing. A line says that it waits for a restart
  (``mesh.control.supervise.migration_versions``).

Files that cannot be loaded replace nothing. The reason is shown, and the old code runs until a later change mends them.
While mesh.toml or the contract is at fault, no component gets a new process, because it would read them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control import deployment, project, topology
from mesh.control.supervise import local_broker
from mesh.control.supervise.child import Child
from mesh.control.supervise.log_output import LogOutput
from mesh.control.supervise.migration_versions import MigrationVersions
from mesh.faults import Faults

__all__ = ["ReloadEffect", "changed_keys", "effect", "fixed_values", "reload_on_change"]

log = logging.getLogger("mesh.control")

EDGE = "edge"
WATCH_TIMEOUT_MS = 1000
"""Milliseconds after which a watch without changes yields an empty set."""
_MESH_UNCHANGED = "the mesh goes on as it was"
_MAX_FILES_NAMED = 4
"""Changed files that a line names at most."""
_IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True)
class ReloadEffect:
    """Effect of changed files.

    Attributes:
        contract: The contract or the deployment has changed, so every component needs a new process.
        services: Names of the services whose functions have changed.
    """

    contract: bool = False
    services: frozenset[str] = field(default_factory=frozenset)


def effect(changed: Iterable[Path], manifest: Manifest) -> ReloadEffect:
    """Return the effect of changed files.

    A Python file belongs to the services that have it as their module. Otherwise it belongs to the services whose
    module lies in the nearest folder around it. Other code is shared and belongs to all services. Tests belong to none.

    Args:
        changed: Absolute paths.
        manifest: The deployment with which the components were started.
    """
    contract = False
    services: set[str] = set()
    modules = {name: _file(manifest.root, config.module) for name, config in manifest.services.items()}
    documents = _documents(manifest)
    for path in changed:
        proto = path.suffix == ".proto" and any(path.is_relative_to(folder) for folder in manifest.protos)
        if proto or path == manifest.file or path in documents:
            contract = True
        elif path.suffix == ".py" and path.is_relative_to(manifest.root):
            services |= _owners(path, modules, manifest.root)
    return ReloadEffect(contract, frozenset(services))


def _documents(manifest: Manifest) -> set[Path]:
    """Return the documents with the routes of Lambda functions."""
    return {function.document for function in manifest.lambdas.values() if function.document is not None}


def _file(root: Path, module: str) -> Path:
    base = root.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _owners(path: Path, modules: Mapping[str, Path], root: Path) -> set[str]:
    inner = path.relative_to(root).parts
    if "tests" in inner[:-1] or path.name == "conftest.py" or path.name.startswith("test_"):
        return set()
    own = {name for name, file in modules.items() if file == path}
    if own:
        return own
    for folder in path.parents:
        if folder == root:
            break
        found = {name for name, file in modules.items() if file.parent == folder}
        if found:
            return found
    return set(modules)


# -- files and processes --


async def reload_on_change(
    manifest: Manifest,
    contract: Contract,
    children: Mapping[str, Child],
    output: LogOutput,
    *,
    versions: MigrationVersions,
    since: float,
) -> None:
    """Watch the project's files and reload the components after each change, for ever.

    Args:
        manifest: The manifest with which the components were started.
        contract: The contract with which the components were started.
        children: The components.
        output: Shows each reload.
        versions: The migration versions from before the databases were migrated.
        since: Time at which manifest and contract were read, seconds since the epoch. A file written after it counts as
            changed.
    """
    reloader = _Reloader(manifest, contract, children, output, versions)
    files = _FileWatcher(manifest)
    try:
        async with asyncio.TaskGroup() as group:
            for follow in files.follow():
                group.create_task(follow)
            await files.watched(since)
            output.supervisor_line(f"reloads when files below {', '.join(map(str, files.tops))} change")
            while True:
                changed = await files.changes.get()
                while not files.changes.empty():  # files that were saved during the last reload
                    changed |= files.changes.get_nowait()
                try:
                    await reloader.apply(changed)
                except Exception as error:
                    log.exception("a reload failed")
                    output.supervisor_line(
                        f"this change cannot be taken ({type(error).__name__}: {error}); the next one may"
                    )
    except* OSError as errors:
        output.supervisor_line(f"nothing is reloaded any more, because files cannot be watched: {errors.exceptions[0]}")


class _FileWatcher:
    """Watcher of the project's files; it ignores installed packages, generated files and the state folder.

    Attributes:
        tops: The folders of the project, none within another.
        changes: Sets of changed files.
    """

    def __init__(self, manifest: Manifest) -> None:
        folders = dict.fromkeys([manifest.root, *manifest.protos])
        self.tops = [one for one in folders if not any(one != top and one.is_relative_to(top) for top in folders)]
        self.changes: asyncio.Queue[set[Path]] = asyncio.Queue()
        self._manifest = manifest
        self._generated = (manifest.stubs, manifest.state)
        self._deep = [folder for top in self.tops for folder in sorted(top.iterdir()) if self._watchable(folder)]
        self._documents = _documents(manifest)
        outside = {file.parent for file in self._documents if not any(file.is_relative_to(top) for top in self.tops)}
        self._flat = [*self.tops, *sorted(outside)]
        self._watching: list[asyncio.Event] = []

    def _watchable(self, folder: Path) -> bool:
        return (
            folder.is_dir()
            and not folder.name.startswith(".")
            and folder.name not in _IGNORED_FOLDERS
            and folder not in self._generated
            and not (folder / "pyvenv.cfg").exists()
        )

    def follow(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield the coroutines that put changes into the queue, for ever."""
        for folders, recursive in ((self._flat, False), (self._deep, True)):
            if folders:
                self._watching.append(asyncio.Event())
                yield self._follow(folders, self._watching[-1], recursive=recursive)

    async def watched(self, since: float) -> None:
        """Wait until no further change can be missed; put files into the queue that were written since a time."""
        for watching in self._watching:
            await watching.wait()
        found = [file for top in self._flat for file in top.iterdir()]
        found += [file for folder in self._deep for file in folder.rglob("*.*")]
        missed = {file for file in found if self._wanted(file) and _modified(file) > since}
        if missed:
            self.changes.put_nowait(missed)

    async def _follow(self, folders: list[Path], watching: asyncio.Event, *, recursive: bool) -> None:
        from watchfiles import awatch  # noqa: PLC0415 - only a reload needs it

        # awatch has no sign that it watches; its first timeout shows it.
        async for found in awatch(
            *folders,
            watch_filter=lambda _, name: self._wanted(Path(name)),
            recursive=recursive,
            rust_timeout=WATCH_TIMEOUT_MS,
            yield_on_timeout=True,
        ):
            watching.set()
            if found:
                self.changes.put_nowait({Path(name) for _, name in found})

    def _wanted(self, path: Path) -> bool:
        # .json: a new mesh.toml may name another document while the mesh runs.
        source = path.suffix in (".py", ".proto", ".json") and not path.name.startswith(".")
        return (
            path == self._manifest.file
            or path in self._documents
            or (source and not any(path.is_relative_to(folder) for folder in self._generated))
        )


def _modified(file: Path) -> float:
    """Return the time at which a file was written, seconds since the epoch; 0 when it was removed meanwhile."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


class _Reloader:
    """Applies changes to the components, and keeps those that a component does not run yet."""

    def __init__(
        self,
        manifest: Manifest,
        contract: Contract,
        children: Mapping[str, Child],
        output: LogOutput,
        versions: MigrationVersions,
    ) -> None:
        self._manifest = manifest
        self._contract = contract
        self._children = children
        self._output = output
        self._versions = versions
        self._shown_differences: dict[str, tuple[str, ...]] = {}  # of the migrations of each service
        self._refused = False  # whether mesh.toml or contract on disk is at fault; every new process would read them
        self._stale: set[str] = set()  # components that need a new process: the contract is new, or the last one failed

    async def apply(self, changed: Iterable[Path]) -> None:
        """Reload the components that these changes concern, and those that an earlier reload could not replace."""
        self._show_migrations()
        change = effect((path for path in changed if not self._versions.contains(path)), self._manifest)
        if not change.contract and not change.services:
            return
        concerned = f": {', '.join(sorted(change.services))}" if not change.contract else ""
        self._output.supervisor_line(f"{self._names(changed)} changed{concerned}")
        if change.contract or self._refused:
            self._refused = True
            self._refused = not await self._load()
            if self._refused:
                self._stale |= change.services
                return
            self._stale |= set(self._children)
        signalled = {name for name in change.services - self._stale if self._children[name].component.reloads}
        for name in sorted(signalled):
            self._children[name].reload()
        self._stale |= change.services - signalled
        for names in [*topology.start_order(self._manifest, self._contract), [EDGE]]:
            await asyncio.gather(*(self._replace(name) for name in names if name in self._stale))

    async def _load(self) -> bool:
        """Read mesh.toml and the contract again; show why and return False when the mesh cannot run with them."""
        try:
            manifest, contract = await asyncio.to_thread(project.load, self._manifest.file)
            faults = deployment.combined_faults(manifest, contract)
        except Faults as found:
            faults = list(found.faults)
        if faults:
            self._say(faults, _MESH_UNCHANGED)
            return False
        keys = changed_keys(fixed_values(self._manifest), fixed_values(manifest))
        if keys:
            text = f"{manifest.file.name} {', '.join(keys)} changed: stop the mesh and start it again with `mesh up`"
            self._say([text], _MESH_UNCHANGED)
            return False
        if local_broker.needed(manifest, contract) and local_broker.BROKER not in self._children:
            text = "the first event, schedule or change needs a broker: stop the mesh and start it again with `mesh up`"
            self._say([text], _MESH_UNCHANGED)
            return False
        if local_broker.BROKER in self._children:
            try:
                local_broker.configure(manifest, contract)
            except Faults as found:
                self._say(found.faults, _MESH_UNCHANGED)
                return False
            self._children[local_broker.BROKER].reload()  # the rights apply to its open connections at once
        self._manifest, self._contract = manifest, contract
        drains = {name: float(config.drain) for name, config in manifest.services.items()}
        if manifest.edge is not None:
            drains[EDGE] = float(manifest.edge.drain)
        for name, drain in drains.items():
            child = self._children[name]  # the old process drains with the time with which it was started
            child.component = replace(child.component, drain=max(drain, child.component.drain))
        return True

    def _names(self, changed: Iterable[Path]) -> str:
        root = self._manifest.root
        names = sorted(str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in changed)
        more = f" and {len(names) - _MAX_FILES_NAMED} more" if len(names) > _MAX_FILES_NAMED else ""
        return f"{', '.join(names[:_MAX_FILES_NAMED])}{more}"

    def _show_migrations(self) -> None:
        """Show each new difference of the migrations once."""
        for name, lines in self._versions.differences().items():
            shown = self._shown_differences.get(name, ())
            for line in lines:
                if line not in shown:
                    self._output.supervisor_line(line)
            if shown and not lines:
                self._output.supervisor_line(f"{name}: the migrations are again those that have run")
            self._shown_differences[name] = lines

    async def _replace(self, name: str) -> None:
        reason = await self._children[name].replace()
        if reason is None:
            self._stale.discard(name)
            self._output.supervisor_line(f"{name} runs the new code, pid {self._children[name].pid}")
        else:
            self._say(reason.splitlines(), f"{name} goes on with the old code")

    def _say(self, reasons: Iterable[object], result: str) -> None:
        for reason in reasons:
            self._output.supervisor_line(str(reason))
        self._output.supervisor_line(result)


def fixed_values(manifest: Manifest) -> dict[str, object]:
    """Return the values of mesh.toml, by key, that the supervisor cannot change while the mesh runs."""
    found: dict[str, object] = {
        "name": manifest.name,
        "tls": manifest.tls,
        "[keys]": manifest.keys,
        "state": manifest.state,
        "liveness": manifest.liveness,
        "broker": manifest.broker,
        "[edge] listen": manifest.edge and manifest.edge.listen,
        "[events] listen": manifest.events.listen,
    }
    for name, config in manifest.services.items():
        found[f"[services.{name}]"] = True
        for key in ("listen", "database", "migrations"):
            found[f"[services.{name}] {key}"] = getattr(config, key)
        found[f"[services.{name}] workers"] = config.workers is not None
    return found


def changed_keys(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Return the keys whose values differ; of a table that was added or removed, the table alone."""
    found = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [key for key in found if not any(key.startswith(f"{other} ") for other in found)]
