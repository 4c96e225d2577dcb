"""Signal reset in processes that functions fork (``os.fork``, ``multiprocessing``).

A fork inherits signal handlers and the wakeup descriptor. Without the reset it would ignore a SIGTERM, or its parent
would read the signal as one for the sidecar. Programs started by exec(2) inherit neither.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

__all__ = ["STOP_SIGNALS", "reset_signals_at_fork"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that stop the sidecar, whichever of its processes receives them."""


def reset_signals_at_fork(numbers: Iterable[int] = STOP_SIGNALS) -> None:
    """Reset signals to their defaults in forks of this process, unless a function has set a handler.

    Args:
        numbers: Signals whose current handlers are the mesh's.
    """
    ours = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in ours.items():
            if signal.getsignal(number) == handler:
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, default)

    os.register_at_fork(after_in_child=restore)
