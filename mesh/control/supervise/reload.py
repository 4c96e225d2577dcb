"""``mesh up --reload``: files that changed → which components run new code, and how. No call is lost on the way.

- A Python file: the services that it belongs to. One with workers gets SIGHUP: new workers with the new code, then the
  old ones drain. One without gets a new process beside the old one, on the same socket; the old one drains once the new
  one is ready.
- A .proto file: stubs and contract are made anew, and every component gets a new process.
- mesh.toml, or a document that says the routes of a Lambda function: the same, as long as the same things listen at
  the same places and keep the same databases.
- A version of a database: nothing but a line that it waits for a restart
(``mesh.control.supervise.migration_versions``).

What cannot be loaded is said, and replaces nothing: the old code goes on until a later change makes it right. While
that is mesh.toml or the contract, no new code runs at all, because a new process would read them.
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
from mesh.control.supervise import own_broker
from mesh.control.supervise.child import Keeper
from mesh.control.supervise.log_output import Console
from mesh.control.supervise.migration_versions import Versions
from mesh.faults import Faults

__all__ = ["Effect", "different", "effect", "fixed", "keep_current"]

log = logging.getLogger("mesh.control")

EDGE = "edge"
HEARTBEAT = 1000
"""Milliseconds after which a watch says that nothing has changed."""
_AS_IT_WAS = "the mesh goes on as it was"
_SHOWN = 4
"""Changed files that are named."""
_FOREIGN = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True)
class Effect:
    """What a change of files means.

    Attributes:
        contract: The contract or the deployment is another: everything has to be loaded anew.
        services: Names of the services whose functions changed.
    """

    contract: bool = False
    services: frozenset[str] = field(default_factory=frozenset)


def effect(changed: Iterable[Path], manifest: Manifest) -> Effect:
    """Return what the change of these files means.

    A Python file belongs to the services whose module it is; else to those whose module is in the deepest folder around
    it; else, as code that they share, to all. Tests belong to none.

    Args:
        changed: Absolute paths.
        manifest: The deployment as it was when the components were started.
    """
    contract = False
    services: set[str] = set()
    modules = {name: _file(manifest.root, entry.module) for name, entry in manifest.services.items()}
    documents = _documents(manifest)
    for path in changed:
        proto = path.suffix == ".proto" and any(path.is_relative_to(folder) for folder in manifest.protos)
        if proto or path == manifest.file or path in documents:
            contract = True
        elif path.suffix == ".py" and path.is_relative_to(manifest.root):
            services |= _owners(path, modules, manifest.root)
    return Effect(contract, frozenset(services))


def _documents(manifest: Manifest) -> set[Path]:
    """Return the files that say the routes of Lambda functions."""
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


# -- the shell: files, keepers --


async def keep_current(
    manifest: Manifest,
    contract: Contract,
    keepers: Mapping[str, Keeper],
    console: Console,
    *,
    versions: Versions,
    since: float,
) -> None:
    """Watch the project's files and have the components run what they say, for ever.

    Args:
        manifest: What the components were started with.
        contract: The same.
        keepers: Of the components.
        console: Where it says what it does.
        versions: The migrations as they were before the databases were migrated.
        since: When all that was read, seconds since the epoch; what has changed after that counts as changed.
    """
    reloader = _Reloader(manifest, contract, keepers, console, versions)
    files = _Files(manifest)
    try:
        async with asyncio.TaskGroup() as group:
            for follow in files.follow():
                group.create_task(follow)
            await files.watched(since)
            console.say(f"reloads when files below {', '.join(map(str, files.tops))} change")
            while True:
                changed = await files.changes.get()
                while not files.changes.empty():  # all that was saved while the last change took effect
                    changed |= files.changes.get_nowait()
                try:
                    await reloader.apply(changed)
                except Exception as error:
                    log.exception("a reload failed")
                    console.say(f"this change cannot be taken ({type(error).__name__}: {error}); the next one may")
    except* OSError as errors:
        console.say(f"nothing is reloaded any more, because files cannot be watched: {errors.exceptions[0]}")


class _Files:
    """The project's files, watched; what is installed, generated or kept by the mesh is not looked at.

    Attributes:
        tops: The folders of the project, none within another.
        changes: Sets of files that changed.
    """

    def __init__(self, manifest: Manifest) -> None:
        folders = dict.fromkeys([manifest.root, *manifest.protos])
        self.tops = [one for one in folders if not any(one != top and one.is_relative_to(top) for top in folders)]
        self.changes: asyncio.Queue[set[Path]] = asyncio.Queue()
        self._manifest = manifest
        self._generated = (manifest.stubs, manifest.state)
        self._deep = [folder for top in self.tops for folder in sorted(top.iterdir()) if self._watchable(folder)]
        self._documents = _documents(manifest)
        beside = {file.parent for file in self._documents if not any(file.is_relative_to(top) for top in self.tops)}
        self._flat = [*self.tops, *sorted(beside)]
        self._begun: list[asyncio.Event] = []

    def _watchable(self, folder: Path) -> bool:
        return (
            folder.is_dir()
            and not folder.name.startswith(".")
            and folder.name not in _FOREIGN
            and folder not in self._generated
            and not (folder / "pyvenv.cfg").exists()
        )

    def follow(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Return what puts changes into the queue, for ever."""
        for folders, recursive in ((self._flat, False), (self._deep, True)):
            if folders:
                self._begun.append(asyncio.Event())
                yield self._follow(folders, self._begun[-1], recursive=recursive)

    async def watched(self, since: float) -> None:
        """Return when no change will be missed any more; those that were already are put into the queue."""
        for begun in self._begun:
            await begun.wait()
        found = [file for top in self._flat for file in top.iterdir()]
        found += [file for folder in self._deep for file in folder.rglob("*.*")]
        missed = {file for file in found if self._wanted(file) and _modified(file) > since}
        if missed:
            self.changes.put_nowait(missed)

    async def _follow(self, folders: list[Path], begun: asyncio.Event, *, recursive: bool) -> None:
        from watchfiles import awatch  # noqa: PLC0415 - only who reloads needs it

        # It says nothing when it begins; a first time-out says that it has.
        async for found in awatch(
            *folders,
            watch_filter=lambda _, name: self._wanted(Path(name)),
            recursive=recursive,
            rust_timeout=HEARTBEAT,
            yield_on_timeout=True,
        ):
            begun.set()
            if found:
                self.changes.put_nowait({Path(name) for _, name in found})

    def _wanted(self, path: Path) -> bool:
        # Another document may be named while the mesh runs.
        source = path.suffix in (".py", ".proto", ".json") and not path.name.startswith(".")
        return (
            path == self._manifest.file
            or path in self._documents
            or (source and not any(path.is_relative_to(folder) for folder in self._generated))
        )


def _modified(file: Path) -> float:
    """Return when a file was written, seconds since the epoch; 0 when it is gone by now, as an editor's are."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


class _Reloader:
    """What is not current yet, and how it becomes so."""

    def __init__(
        self,
        manifest: Manifest,
        contract: Contract,
        keepers: Mapping[str, Keeper],
        console: Console,
        versions: Versions,
    ) -> None:
        self._manifest = manifest
        self._contract = contract
        self._keepers = keepers
        self._console = console
        self._versions = versions
        self._waits: dict[str, tuple[str, ...]] = {}  # said of the migrations of each service
        self._refused = False  # mesh.toml and contract as they are on disk, which every new process would read
        self._stale: set[str] = set()  # a new process is needed, because the contract is new, or the last one failed

    async def apply(self, changed: Iterable[Path]) -> None:
        """Make everything current that these changes concern, and what could not be made current before."""
        self._say_versions()
        change = effect((path for path in changed if not self._versions.hold(path)), self._manifest)
        if not change.contract and not change.services:
            return
        concerned = f": {', '.join(sorted(change.services))}" if not change.contract else ""
        self._console.say(f"{self._names(changed)} changed{concerned}")
        if change.contract or self._refused:
            self._refused = True
            self._refused = not await self._load()
            if self._refused:
                self._stale |= change.services
                return
            self._stale |= set(self._keepers)
        signalled = {name for name in change.services - self._stale if self._keepers[name].component.reloads}
        for name in sorted(signalled):
            self._keepers[name].reload()
        self._stale |= change.services - signalled
        for layer in [*topology.layers(self._manifest, self._contract), [EDGE]]:
            await asyncio.gather(*(self._replace(name) for name in layer if name in self._stale))

    async def _load(self) -> bool:
        """Read mesh.toml and the contract anew; False, and why is said, when the mesh cannot run with them."""
        try:
            manifest, contract = await asyncio.to_thread(project.load, self._manifest.file)
            faults = deployment.deployment(manifest, contract)
        except Faults as found:
            faults = list(found.faults)
        if faults:
            self._say(faults, _AS_IT_WAS)
            return False
        places = different(fixed(self._manifest), fixed(manifest))
        if places:
            self._say([f"{manifest.file.name} {', '.join(places)} changed: stop, and mesh up again"], _AS_IT_WAS)
            return False
        if own_broker.needed(manifest, contract) and own_broker.BROKER not in self._keepers:
            self._say(["the first event, schedule or change needs a broker: stop, and mesh up again"], _AS_IT_WAS)
            return False
        self._manifest, self._contract = manifest, contract
        drains = {name: float(entry.drain) for name, entry in manifest.services.items()}
        if manifest.edge is not None:
            drains[EDGE] = float(manifest.edge.drain)
        for name, drain in drains.items():
            keeper = self._keepers[name]  # the process that leaves has the time that it was started with
            keeper.component = replace(keeper.component, drain=max(drain, keeper.component.drain))
        return True

    def _names(self, changed: Iterable[Path]) -> str:
        root = self._manifest.root
        names = sorted(str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in changed)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"{', '.join(names[:_SHOWN])}{more}"

    def _say_versions(self) -> None:
        """Say what is new of the migrations, once."""
        for name, lines in self._versions.news().items():
            said = self._waits.get(name, ())
            for line in lines:
                if line not in said:
                    self._console.say(line)
            if said and not lines:
                self._console.say(f"{name}: the migrations are again those that have run")
            self._waits[name] = lines

    async def _replace(self, name: str) -> None:
        reason = await self._keepers[name].replace()
        if reason is None:
            self._stale.discard(name)
            self._console.say(f"{name} runs the new code, pid {self._keepers[name].pid}")
        else:
            self._say(reason.splitlines(), f"{name} goes on with the old code")

    def _say(self, lines: Iterable[object], then: str) -> None:
        for line in lines:
            self._console.say(str(line))
        self._console.say(then)


def fixed(manifest: Manifest) -> dict[str, object]:
    """Return by place in mesh.toml what the supervisor has been made for, and cannot change while it runs."""
    found: dict[str, object] = {
        "state": manifest.state,
        "broker": manifest.broker,
        "[edge] listen": manifest.edge and manifest.edge.listen,
        "[events] listen": manifest.events.listen,
    }
    for name, entry in manifest.services.items():
        found[f"[services.{name}]"] = True
        for key in ("listen", "database", "migrations"):
            found[f"[services.{name}] {key}"] = getattr(entry, key)
        found[f"[services.{name}] workers"] = entry.workers is not None
    return found


def different(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Return the places whose values differ; of a table that is new or gone the table alone."""
    found = [place for place in {**old, **new} if old.get(place) != new.get(place)]
    return [place for place in found if not any(place.startswith(f"{other} ") for other in found)]
