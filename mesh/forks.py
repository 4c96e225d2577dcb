"""Processes that functions fork (``os.fork``, ``multiprocessing``): signals are theirs, not the mesh's.

A fork inherits signal handlers and the wakeup descriptor. Without this, a SIGTERM for the child would be ignored by it,
or be read by its parent as one for the sidecar. Programs that are started by exec(2) inherit neither.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

__all__ = ["STOPS", "give_back"]

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that mean the sidecar, whichever of its processes they come to."""


def give_back(numbers: Iterable[int] = STOPS) -> None:
    """Have the forks of this process begin with the defaults of signals, where a function has set no handler.

    Args:
        numbers: The signals whose present handlers are the mesh's.
    """
    ours = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in ours.items():
            if signal.getsignal(number) == handler:
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, default)

    os.register_at_fork(after_in_child=restore)
