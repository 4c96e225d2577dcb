"""Which methods kill the workers that they run in: those are kept apart from the others. Pure, without a clock.

When a worker dies, any call that had begun in it may be why, and all of them are noted. A method that does it does so
every time, or often; one that was only there answers most of its calls. So a method is a suspect as long as at least
one in ten of its calls, of about the last hundreds, ended with its worker. It clears itself by answering.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Suspects"]

SHARE = 0.1
"""Calls that end with their worker, of all calls of a method, from which on it is a suspect."""
MEMORY = 200
"""Answered calls after which all that came before counts half."""
TRACE = 0.5
"""Deaths, counted as above, that are too long ago to count."""


class Suspects:
    """The record of a service's methods.

    Args:
        methods: Their paths.

    Attributes:
        names: The suspects.
    """

    __slots__ = ("_answered", "_died", "names")

    def __init__(self, methods: Iterable[str]) -> None:
        self._answered: dict[str, float] = dict.fromkeys(methods, 0.0)
        self._died: dict[str, float] = {}
        self.names: set[str] = set()

    def answered(self, method: str) -> None:
        """Note that a call of the method has ended as it should: with an answer or with an error."""
        count = self._answered[method] = self._answered[method] + 1
        if count >= MEMORY:
            self._answered[method] = count / 2
            if method in self._died:
                self._died[method] /= 2
        if method in self._died:
            self._judge(method)

    def died(self, method: str) -> None:
        """Note that a call of the method had begun in a worker that died, or blocked its worker."""
        self._died[method] = self._died.get(method, 0.0) + 1
        self._judge(method)

    def forget(self) -> None:
        """Forget everything: there is new code."""
        self._answered = dict.fromkeys(self._answered, 0.0)
        self._died.clear()
        self.names.clear()

    def _judge(self, method: str) -> None:
        died = self._died[method]
        if died < TRACE:
            del self._died[method]
            self.names.discard(method)
        elif died >= SHARE * (died + self._answered[method]):
            self.names.add(method)
        else:
            self.names.discard(method)
