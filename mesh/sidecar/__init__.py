"""Hosts the functions of one service.

One chain, one list, for every method:
``trace → recover → deadline → authenticate → authorize → concurrency_limit → run → function``.
What stands before ``concurrency_limit`` costs no place in it; what stands after ``recover`` may raise anything. Health
and reflection pass only ``recover → deadline``. In place of the functions there may be a pool of worker processes
(``mesh.sidecar.workers``), and nothing else changes.

A delivery (an event, a change, a tick) passes
``trace → recover → deadline → linked → concurrency_limit → run → once → function``: it comes from this process, so
there is nobody to authenticate, and the contract's trigger is the permission.
"""

from typing import TYPE_CHECKING, Any

from mesh.sidecar.service_context import ServiceContext

if TYPE_CHECKING:
    from mesh.sidecar.sidecar import Sidecar

__all__ = ["ServiceContext", "Sidecar"]


def __getattr__(name: str) -> Any:
    """Load the server when a sidecar is made; worker processes do without."""
    if name != "Sidecar":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mesh.sidecar.sidecar import Sidecar  # noqa: PLC0415 - see above

    return Sidecar
