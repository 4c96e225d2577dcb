"""Signals for an event loop outside the main thread: the main thread runs functions, the loop gets the signals.

Python runs signal handlers in the main thread only, between two steps of Python code. A function that waits in a
database driver delays them. The wakeup descriptor (``signal.set_wakeup_fd``) has no such delay. A function may replace
the handler (``signal.signal``) or the descriptor (an event loop of its own in the main thread). Both therefore report
each signal, and the first report counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterable

__all__ = ["SignalReceiver"]

_HANDLED = 0x80
"""Bit that marks a report of the handler; signal numbers are smaller (``signal.NSIG``)."""


class SignalReceiver:
    """Receiver of signals, from its construction on. Construct it in the main thread.

    Args:
        numbers: The signals.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = tuple(numbers)
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._seen = {(number, handled): 0 for number in self._numbers for handled in (0, _HANDLED)}
        for number in self._numbers:
            signal.signal(number, self._handle)
        self.keep()

    def keep(self) -> None:
        """Install the handlers again after a function has reset them. Call it in the main thread."""
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in self._numbers:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self._handle)

    def add(self, number: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the running loop for each signal, as ``loop.add_signal_handler`` does."""
        if not self._callbacks:
            asyncio.get_running_loop().add_reader(self._reading, self._read)
        self._callbacks[number] = callback

    def _handle(self, number: int, _: object) -> None:
        with contextlib.suppress(OSError):  # the buffer is full of signals that the loop has not read yet
            self._writing.send(bytes([number | _HANDLED]))

    def _read(self) -> None:
        for byte in self._reading.recv(4096):
            number, handled = byte & ~_HANDLED, byte & _HANDLED
            if (number, handled) not in self._seen:  # a signal that a function handles itself
                continue
            self._seen[number, handled] += 1
            callback = self._callbacks.get(number)
            if callback is not None and self._seen[number, handled] > self._seen[number, handled ^ _HANDLED]:
                callback()
