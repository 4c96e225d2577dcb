"""Import timer: the slowest imports while a worker loads its functions, for the trace of the call that waits for it."""

from __future__ import annotations

from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from time import perf_counter
from types import ModuleType, TracebackType
from typing import Any, Self

__all__ = ["ImportTimer"]

_LOADERS: tuple[Any, ...] = (SourceFileLoader, ExtensionFileLoader)
MAX_IMPORTS = 5
"""Imports that are reported."""


class ImportTimer:
    """Times every module that is loaded from a file in its ``with`` block, without the modules that it imports."""

    def __init__(self) -> None:
        self._seconds: list[tuple[str, float]] = []
        self._inner = 0.0
        self._original: list[Any] = []

    def slowest(self) -> list[tuple[str, float]]:
        """Return the slowest imports: module, seconds."""
        return sorted(self._seconds, key=lambda found: -found[1])[:MAX_IMPORTS]

    def __enter__(self) -> Self:
        self._original = [loader.exec_module for loader in _LOADERS]
        for loader, original in zip(_LOADERS, self._original, strict=True):
            loader.exec_module = self._timed(original)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for loader, original in zip(_LOADERS, self._original, strict=True):
            loader.exec_module = original

    def _timed(self, original: Any) -> Any:
        def exec_module(loader: Any, module: ModuleType) -> None:
            outer, self._inner = self._inner, 0.0
            began = perf_counter()
            try:
                original(loader, module)
            finally:
                seconds = perf_counter() - began
                self._seconds.append((module.__name__, seconds - self._inner))
                self._inner = outer + seconds

        return exec_module
