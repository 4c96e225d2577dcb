"""Sidecar: hosts the functions of one service.

Decisions:

- **One visible chain for every method**, outermost layer first:
  ``trace → recover → deadline → authenticate → authorize → concurrency_limit → run → function``. A call that a layer
  before ``concurrency_limit`` refuses takes no permit. Layers after ``recover`` may raise any exception. Health and
  reflection pass only ``recover → deadline``.
- **A delivery passes the same chain without authentication** (an event, a change, a tick):
  ``trace → recover → deadline → linked → concurrency_limit → run → once → function``. It comes from this process, so
  there is no caller to authenticate, and the contract's trigger is the permission.
- **Worker processes replace the functions only.** A pool (``mesh.sidecar.workers``) takes their place; the rest of the
  chain stays as it is.

Refused: a sidecar does not know which service it hosts. All that differs between services is in its arguments.
"""

from typing import TYPE_CHECKING, Any

from mesh.sidecar.service_context import ServiceContext

if TYPE_CHECKING:
    from mesh.sidecar.sidecar import Sidecar

__all__ = ["ServiceContext", "Sidecar"]


def __getattr__(name: str) -> Any:
    """Import the server at the first use of ``Sidecar``, because worker processes need only ``ServiceContext``."""
    if name != "Sidecar":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mesh.sidecar.sidecar import Sidecar  # noqa: PLC0415 - see above

    return Sidecar
