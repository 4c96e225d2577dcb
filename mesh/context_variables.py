"""Inherited context variables: what a module's import and its ``startup`` have set, for every call of its functions.

The task of a call is made by a server, a worker's connection or a delivery, and begins with the context of whoever
made that. So each call sets the variables by itself, before its function begins. What a function changes stays its
own: the task, or the copy that a thread works in, ends with the call.

The current decimal context is a variable as well, with a value that changes in place
(``decimal.getcontext().prec = 5``); a call gets a copy of it.
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

__all__ = ["Inherited", "copy_of"]


class Inherited:
    """The context variables that the calls of one module inherit."""

    __slots__ = ("_decimal", "_values")

    def __init__(self) -> None:
        self._values: tuple[tuple[ContextVar[Any], Any], ...] = ()
        self._decimal: decimal.Context | None = None

    def keep(self, context: Context | None = None) -> None:
        """Keep the values of a context, or of the running one."""
        found = copy_context() if context is None else context
        left = _own()
        self._decimal = None
        if "decimal" in sys.modules:
            variable = _decimal_variable()
            self._decimal = found[variable].copy() if variable in found else None
            left |= {variable}
        self._values = tuple((variable, value) for variable, value in found.items() if variable not in left)

    def enter(self) -> None:
        """Give the running context these values."""
        for variable, value in self._values:
            variable.set(value)
        if self._decimal is not None:
            sys.modules["decimal"].setcontext(self._decimal.copy())

    def __call__(self, call: Call, next: Callable[[Any], CoroutineType[Any, Any, None]]) -> Awaitable[None]:
        """Give them to the call: the innermost layer."""
        self.enter()
        return next(call)


def copy_of(context: Context) -> Context:
    """Return a copy in which nothing is changed for the original, the current decimal context included."""
    copy = context.copy()
    if "decimal" in sys.modules:
        variable = _decimal_variable()
        if variable in copy:
            copy.run(variable.set, copy[variable].copy())
    return copy


@cache
def _own() -> frozenset[ContextVar[Any]]:
    """Return the variables that belong to the call that is answered: OpenTelemetry's current context among them."""
    empty = Context()
    empty.run(otel.attach, otel.Context())
    return frozenset({current, *empty})


@cache
def _decimal_variable() -> ContextVar[Any]:
    """Return the variable of the current decimal context, which the module does not name."""
    empty = Context()
    empty.run(sys.modules["decimal"].getcontext)
    (variable,) = empty
    return variable
