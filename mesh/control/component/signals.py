"""Signals of a process whose main thread runs functions: they reach the event loop, which runs in another thread.

Python runs signal handlers in the main thread only, and there between two steps of Python code: not while a function
waits in a database's driver. The wakeup descriptor (``signal.set_wakeup_fd``) has no such delay. A function may replace
the one (``signal.signal``) or the other (an event loop of its own in the main thread), so both tell of each signal, and
whichever is first counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterable

__all__ = ["Signals"]

_HANDLED = 0x80
"""Set in a signal's number when its handler has run; numbers are below it (``signal.NSIG``)."""


class Signals:
    """Takes signals, from when it is made: in the main thread.

    Args:
        numbers: Which ones.
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
        """Take them again after a function has given them up: in the main thread."""
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
        with contextlib.suppress(OSError):  # the buffer is full of signals that nobody has looked at yet
            self._writing.send(bytes([number | _HANDLED]))

    def _read(self) -> None:
        for byte in self._reading.recv(4096):
            number, handled = byte & ~_HANDLED, byte & _HANDLED
            if (number, handled) not in self._seen:  # another signal of a function's
                continue
            self._seen[number, handled] += 1
            callback = self._callbacks.get(number)
            if callback is not None and self._seen[number, handled] > self._seen[number, handled ^ _HANDLED]:
                callback()
