"""The function under load; the peers in ``benchmarks/peers`` do the same work."""

from __future__ import annotations

import os

from google.protobuf.empty_pb2 import Empty
from notes.v1 import notes_pb2 as pb
from tally import Tally

from mesh import Context

CALLED = Tally(os.environ["TALLY_READER"])


async def on_noted(request: pb.Noted, context: Context) -> Empty:  # noqa: ARG001 - the signature of functions
    """Record the time."""
    CALLED.note(request.number)
    return Empty()
