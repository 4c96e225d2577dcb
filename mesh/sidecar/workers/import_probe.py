"""The scratch process of ``mesh.sidecar.workers.preload``: imports a module once and watches what that does.

It sees each module that is loaded from a file: its time, the modules that it asked for, whether threads or sockets were
there afterwards that were not before. It ends without running anything else of the module.
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
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any, TypeVar

import msgspec

from mesh.text import text_of

__all__ = ["Answer", "Import", "Plan", "Question", "answer", "main", "read", "written"]

AnyT = TypeVar("AnyT")

SLOWEST = 10
"""Imports that are named."""


class Import(msgspec.Struct, frozen=True):
    """One import.

    Attributes:
        module: Its name.
        seconds: How long it took; for a module of the project without the imports in it, for others with them.
    """

    module: str
    seconds: float


class Plan(msgspec.Struct, frozen=True):
    """What to preload.

    Attributes:
        modules: In the order in which they were imported; what they import themselves is not named again.
        slowest: The slowest imports of the project's code, preloaded or not.
        left_out: Module from outside of the project → why it is not preloaded.
        failed: Why the module could not be imported, or ""; the plan is then about what came before.
    """

    modules: tuple[str, ...]
    slowest: tuple[Import, ...]
    left_out: dict[str, str]
    failed: str


class Question(msgspec.Struct, frozen=True):
    """What the process is asked.

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


class Answer(msgspec.Struct, frozen=True):
    """What it answers: the plan, and the project's files that were imported."""

    plan: Plan
    files: tuple[str, ...]


class _Seen:
    """A module that was loaded while it was watched."""

    def __init__(self, name: str, file: str) -> None:
        self.name = name
        self.file = file
        self.asked: set[str] = set()
        self.total = self.inner = 0.0
        self.left = (0, 0)
        self.inner_left = (0, 0)

    @property
    def own(self) -> float:
        return self.total - self.inner

    @property
    def fault(self) -> str:
        """What it left behind, itself; or ""."""
        threads, sockets = (after - inner for after, inner in zip(self.left, self.inner_left, strict=True))
        return "it starts threads" if threads > 0 else "it opens sockets" if sockets > 0 else ""


class _Watch:
    """A finder before all others, which finds nothing itself and times what they find."""

    def __init__(self) -> None:
        self.seen: dict[str, _Seen] = {}
        self._stack: list[_Seen] = []
        self._import = builtins.__import__

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        sys.meta_path.insert(0, self)
        builtins.__import__ = self._asked
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
                # Other loaders are shared between modules, or are classes; what they load is no file.
                if isinstance(spec.loader, SourceFileLoader | SourcelessFileLoader | ExtensionFileLoader):
                    seen = _Seen(name, spec.origin or "")
                    for step in ("create_module", "exec_module"):
                        setattr(spec.loader, step, self._timed(getattr(spec.loader, step), seen))
                return spec
        return None

    def _timed(self, step: Callable[[Any], Any], seen: _Seen) -> Callable[[Any], Any]:
        def timed(argument: Any) -> Any:
            self.seen.setdefault(seen.name, seen)
            if self._stack:
                self._stack[-1].asked.add(seen.name)
            self._stack.append(seen)
            before, began = _left_behind(), perf_counter()
            try:
                return step(argument)
            finally:
                took = perf_counter() - began
                left = tuple(now - then for now, then in zip(_left_behind(), before, strict=True))
                self._stack.pop()
                seen.total += took
                seen.left = (seen.left[0] + left[0], seen.left[1] + left[1])
                if self._stack:
                    outer = self._stack[-1]
                    outer.inner += took
                    outer.inner_left = (outer.inner_left[0] + left[0], outer.inner_left[1] + left[1])

        return timed

    def _asked(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 - the signature of __import__
        locals: Mapping[str, object] | None = None,  # noqa: A002 - the same
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Note who asks for a module, also for one that is there already."""
        found = self._import(name, globals, locals, fromlist, level)
        asker = self.seen.get(str((globals or {}).get("__name__")))
        if asker is not None:
            whole = name
            if level:
                package = str((globals or {}).get("__package__") or asker.name)
                whole = importlib.util.resolve_name("." * level + name, package)
            asker.asked.update([whole, *(f"{whole}.{part}" for part in fromlist or ())])
        return found


def _left_behind() -> tuple[int, int]:
    """Return how many threads and sockets there are."""
    try:
        threads = len(list(Path("/proc/self/task").iterdir()))
        descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:  # no Linux: only what Python knows of
        return threading.active_count(), 0
    sockets = 0
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # the listing's own
            sockets += stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    return threads, sockets


def answer(question: Question) -> Answer:
    """Import the module here, and say what to preload; to be called in a process that does nothing else."""
    watch = _Watch()
    failed = ""
    with watch.watching():
        try:
            importlib.import_module(question.module)
        except BaseException as error:  # noqa: BLE001 - also a module that ends the process
            failed = f"{type(error).__name__}: {text_of(error)}"
    seen = watch.seen
    own = {name for name, one in seen.items() if _is_own(Path(one.file), question)}
    whys = _left_out(seen, own)
    modules = [name for name in seen if name not in own and name not in whys]
    direct = {name: seen[name].total for one in own for name in seen[one].asked if name in seen}
    direct |= {name: seen[name].own for name in own}
    slowest = sorted(direct.items(), key=itemgetter(1), reverse=True)[:SLOWEST]
    return Answer(
        Plan(
            modules=tuple(_roots(modules, seen)),
            slowest=tuple(Import(name, seconds) for name, seconds in slowest),
            left_out=whys,
            failed=failed,
        ),
        files=tuple(sorted(seen[name].file for name in own)),
    )


def _is_own(file: Path, question: Question) -> bool:
    """Whether it is the project's code, and no generated stub and nothing that was installed into its folder."""
    root = Path(question.root)
    if not file.is_relative_to(root) or file.is_relative_to(question.stubs):
        return False
    if file.is_relative_to(Path(__file__).parents[2]):  # the framework's own repository is a project too
        return False
    return not any(part.startswith(".") or part.endswith("-packages") for part in file.relative_to(root).parts)


def _left_out(seen: Mapping[str, _Seen], own: set[str]) -> dict[str, str]:
    """Return module → why it cannot be preloaded: for what it does, or for what it imports."""
    whys = {name: one.fault for name, one in seen.items() if one.fault and name not in own}
    whys_of_own = dict.fromkeys(own, "it is the project's own code")
    changed = True
    while changed:
        changed = False
        for name, one in seen.items():
            if name in own or name in whys:
                continue
            for other in (*sorted(one.asked), name.rpartition(".")[0]):
                why = whys.get(other) or whys_of_own.get(other)
                if why and other != name:
                    whys[name] = why if why.startswith("it imports ") else f"it imports {other}: {why}"
                    changed = True
                    break
    return whys


def _roots(modules: Sequence[str], seen: Mapping[str, _Seen]) -> Iterator[str]:
    """Return as few of the modules as bring in all of them."""
    wanted = set(modules)
    brought: set[str] = set()
    for name in modules:  # who was asked for first has begun first
        if name in brought:
            continue
        yield name
        front = [name]
        while front:
            one = front.pop()
            if one not in brought:
                brought.add(one)
                front += [other for other in seen[one].asked if other in wanted]


def written(value: Any) -> bytes:
    """Return the value as JSON; names of files that are no UTF-8 too, which msgspec's own encoder refuses."""
    return json.dumps(msgspec.to_builtins(value)).encode()


def read(text: bytes, kind: type[AnyT]) -> AnyT:
    """Return what ``written`` wrote.

    Raises:
        ValueError: It is nothing of the kind.
    """
    return msgspec.convert(json.loads(text), kind)


def main() -> None:
    """Read the question from standard input, and write the answer to the descriptor that the argument names."""
    from mesh.sidecar.workers import forkserver  # noqa: F401, PLC0415 - what is there in any case is not watched

    question = read(sys.stdin.buffer.read(), Question)
    sys.path[:] = question.path
    with os.fdopen(int(sys.argv[1]), "wb") as answers:
        answers.write(written(answer(question)))
    os._exit(0)  # no thread that the module has started is waited for


if __name__ == "__main__":
    main()
