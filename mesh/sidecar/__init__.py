"""Hosts the functions of one service.

One chain, one list, for every method:
``trace → recover → deadline → authenticate → authorize → gate → run → function``.
What stands before ``gate`` costs no place in it; what stands after ``recover`` may raise anything. Health and
reflection pass only ``recover → deadline``.

A delivery (an event, a change, a tick) passes
``trace → recover → deadline → linked → gate → run → once → function``: it comes from this process, so there is nobody
to authenticate, and the contract's trigger is the permission.
"""

from mesh.sidecar.service import ServiceContext
from mesh.sidecar.sidecar import Sidecar

__all__ = ["ServiceContext", "Sidecar"]
