"""Import probe: the scratch process of ``mesh.sidecar.workers.preload``, which imports a module once and watches it.

It records for each module that is loaded from a file which modules it imports, and whether it left threads or sockets
behind. It ends without running any function of the module.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import importlib.util
import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import msgspec

from mesh.text import text_of

__all__ = ["PreloadPlan", "ProbeRequest", "ProbeResult", "from_json", "main", "probe", "to_json"]

AnyT = TypeVar("AnyT")


class PreloadPlan(msgspec.Struct, frozen=True):
    """Modules to preload.

    Attributes:
        modules: In the order in which they were imported; a module that another one imports is not repeated.
        excluded: Module from outside of the project → why it is not preloaded; for the reader of the stored plan.
        failed: Why the module could not be imported, or ""; the plan then covers the imports before the failure.
    """

    modules: tuple[str, ...]
    excluded: dict[str, str]
    failed: str


class ProbeRequest(msgspec.Struct, frozen=True):
    """Input of the scratch process.

    Attributes:
        module: The module of a service's functions.
        path: ``sys.path``.
        root: The folder of the project.
        stubs: The folder of the generated stubs.
    """

    module: str
    path: tuple[str, ...]
    root: str
    stubs: str


class ProbeResult(msgspec.Struct, frozen=True):
    """Output of the scratch process: the plan, and the project's files that were imported."""

    plan: PreloadPlan
    files: tuple[str, ...]


class _LoadedModule:
    """A module that was loaded while imports were watched.

    Attributes:
        name: Its name.
        file: Its file.
        imports: The modules that it imported.
        left: Threads and sockets that its import left behind.
        inner_left: Those that the imports in it left behind.
    """

    def __init__(self, name: str, file: str) -> None:
        self.name = name
        self.file = file
        self.imports: set[str] = set()
        self.left = (0, 0)
        self.inner_left = (0, 0)

    @property
    def fault(self) -> str:
        """Reason why the module itself cannot be preloaded; or ""."""
        threads, sockets = (after - inner for after, inner in zip(self.left, self.inner_left, strict=True))
        return "it starts threads" if threads > 0 else "it opens sockets" if sockets > 0 else ""


class _ImportWatcher:
    """A finder before all others; it finds no module itself and watches the loading of those that they find."""

    def __init__(self) -> None:
        self.loaded: dict[str, _LoadedModule] = {}
        self._stack: list[_LoadedModule] = []
        self._import = builtins.__import__

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        sys.meta_path.insert(0, self)
        builtins.__import__ = self._record_import
        try:
            yield
        finally:
            builtins.__import__ = self._import
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path[1:]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                # Other loaders are shared between modules, or are classes, and load no file.
                if isinstance(spec.loader, SourceFileLoader | SourcelessFileLoader | ExtensionFileLoader):
                    loaded = _LoadedModule(name, spec.origin or "")
                    for step in ("create_module", "exec_module"):
                        setattr(spec.loader, step, self._watched(getattr(spec.loader, step), loaded))
                return spec
        return None

    def _watched(self, step: Callable[[Any], Any], loaded: _LoadedModule) -> Callable[[Any], Any]:
        def watched(argument: Any) -> Any:
            self.loaded.setdefault(loaded.name, loaded)
            if self._stack:
                self._stack[-1].imports.add(loaded.name)
            self._stack.append(loaded)
            before = _thread_and_socket_counts()
            try:
                return step(argument)
            finally:
                left = tuple(now - then for now, then in zip(_thread_and_socket_counts(), before, strict=True))
                self._stack.pop()
                loaded.left = (loaded.left[0] + left[0], loaded.left[1] + left[1])
                if self._stack:
                    outer = self._stack[-1]
                    outer.inner_left = (outer.inner_left[0] + left[0], outer.inner_left[1] + left[1])

        return watched

    def _record_import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 - the signature of __import__
        locals: Mapping[str, object] | None = None,  # noqa: A002 - the same
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Record an import for the module that imports, also of a module that is loaded already."""
        found = self._import(name, globals, locals, fromlist, level)
        importer = self.loaded.get(str((globals or {}).get("__name__")))
        if importer is not None:
            full_name = name
            if level:
                package = str((globals or {}).get("__package__") or importer.name)
                full_name = importlib.util.resolve_name("." * level + name, package)
            importer.imports.update([full_name, *(f"{full_name}.{part}" for part in fromlist or ())])
        return found


def _thread_and_socket_counts() -> tuple[int, int]:
    """Return the number of threads and of sockets of this process."""
    try:
        threads = len(list(Path("/proc/self/task").iterdir()))
        descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:  # no Linux: count the threads that Python knows
        return threading.active_count(), 0
    sockets = 0
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            sockets += stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    return threads, sockets


def probe(request: ProbeRequest) -> ProbeResult:
    """Import the module in this process, which does nothing else, and return the plan."""
    watch = _ImportWatcher()
    failed = ""
    with watch.watching():
        try:
            importlib.import_module(request.module)
        except BaseException as error:  # noqa: BLE001 - also a module that ends the process
            failed = f"{type(error).__name__}: {text_of(error)}"
    loaded = watch.loaded
    own = {name for name, one in loaded.items() if _is_own(Path(one.file), request)}
    excluded = _excluded(loaded, own)
    modules = [name for name in loaded if name not in own and name not in excluded]
    return ProbeResult(
        PreloadPlan(modules=tuple(_roots(modules, loaded)), excluded=excluded, failed=failed),
        files=tuple(sorted(loaded[name].file for name in own)),
    )


def _is_own(file: Path, request: ProbeRequest) -> bool:
    """Whether it is the project's code: neither a generated stub nor installed in a folder of the project."""
    root = Path(request.root)
    if not file.is_relative_to(root) or file.is_relative_to(request.stubs):
        return False
    if file.is_relative_to(Path(__file__).parents[2]):  # the framework, whose own repository is a project too
        return False
    return not any(part.startswith(".") or part.endswith("-packages") for part in file.relative_to(root).parts)


def _excluded(loaded: Mapping[str, _LoadedModule], own: set[str]) -> dict[str, str]:
    """Return module → why it cannot be preloaded: because of itself, or of a module that it imports."""
    reasons = {name: one.fault for name, one in loaded.items() if one.fault and name not in own}
    own_reasons = dict.fromkeys(own, "it is the project's own code")
    changed = True
    while changed:
        changed = False
        for name, one in loaded.items():
            if name in own or name in reasons:
                continue
            for other in (*sorted(one.imports), name.rpartition(".")[0]):
                why = reasons.get(other) or own_reasons.get(other)
                if why and other != name:
                    reasons[name] = why if why.startswith("it imports ") else f"it imports {other}: {why}"
                    changed = True
                    break
    return reasons


def _roots(modules: Sequence[str], loaded: Mapping[str, _LoadedModule]) -> Iterator[str]:
    """Return as few of the modules as import all of them."""
    wanted = set(modules)
    brought: set[str] = set()
    for name in modules:  # in the order in which their imports began
        if name in brought:
            continue
        yield name
        front = [name]
        while front:
            one = front.pop()
            if one not in brought:
                brought.add(one)
                front += [other for other in loaded[one].imports if other in wanted]


def to_json(value: Any) -> bytes:
    """Return the value as JSON, also with file names that are no UTF-8, which msgspec's own encoder refuses."""
    return json.dumps(msgspec.to_builtins(value)).encode()


def from_json(text: bytes, kind: type[AnyT]) -> AnyT:
    """Return the value that ``to_json`` wrote.

    Raises:
        ValueError: It is no value of this type.
    """
    return msgspec.convert(json.loads(text), kind)


def main() -> None:
    """Read the request from standard input, and write the result to the descriptor that the argument names."""
    from mesh.sidecar.workers import forkserver  # noqa: F401, PLC0415 - so that its imports are not watched

    request = from_json(sys.stdin.buffer.read(), ProbeRequest)
    sys.path[:] = request.path
    with os.fdopen(int(sys.argv[1]), "wb") as output:
        output.write(to_json(probe(request)))
    os._exit(0)  # does not wait for threads that the module has started


if __name__ == "__main__":
    main()
