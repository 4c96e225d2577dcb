"""Inherited context variables: values set by a module's import and its ``startup``, for each call of its functions.

A server, a worker's connection or a delivery creates the task of a call, and the task starts with the context of its
creator. So each call sets the variables itself before its function starts. Changes by a function stay in its call,
because the task, or the copy of the context in a thread, ends with the call.

The current decimal context is a context variable too, and its value changes in place (``decimal.getcontext().prec =
5``). Each call gets a copy of it.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar, copy_context
from functools import cache
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel

from mesh.call import Call, current

if TYPE_CHECKING:
    import decimal
    from types import CoroutineType

__all__ = ["InheritedContext", "isolated_copy"]


class InheritedContext:
    """Context variables that the calls of one module inherit."""

    __slots__ = ("_decimal", "_values")

    def __init__(self) -> None:
        self._values: tuple[tuple[ContextVar[Any], Any], ...] = ()
        self._decimal: decimal.Context | None = None

    def capture(self, context: Context | None = None) -> None:
        """Capture the values of a context, by default the current one."""
        source = copy_context() if context is None else context
        excluded = _call_variables()
        self._decimal = None
        if "decimal" in sys.modules:
            variable = _decimal_variable()
            self._decimal = source[variable].copy() if variable in source else None
            excluded |= {variable}
        self._values = tuple((variable, value) for variable, value in source.items() if variable not in excluded)

    def apply(self) -> None:
        """Set the captured values in the current context."""
        for variable, value in self._values:
            variable.set(value)
        if self._decimal is not None:
            sys.modules["decimal"].setcontext(self._decimal.copy())

    def __call__(self, call: Call, next: Callable[[Any], CoroutineType[Any, Any, None]]) -> Awaitable[None]:
        """Set the captured values for a call: the innermost layer."""
        self.apply()
        return next(call)


def isolated_copy(context: Context) -> Context:
    """Return a copy of a context that shares no state with it, not even the current decimal context."""
    copy = context.copy()
    if "decimal" in sys.modules:
        variable = _decimal_variable()
        if variable in copy:
            copy.run(variable.set, copy[variable].copy())
    return copy


@cache
def _call_variables() -> frozenset[ContextVar[Any]]:
    """Return the variables that belong to the current call, among them OpenTelemetry's current context."""
    empty = Context()
    empty.run(otel.attach, otel.Context())
    return frozenset({current, *empty})


@cache
def _decimal_variable() -> ContextVar[Any]:
    """Return the variable of the current decimal context, which the module ``decimal`` does not export."""
    empty = Context()
    empty.run(sys.modules["decimal"].getcontext)
    (variable,) = empty
    return variable
