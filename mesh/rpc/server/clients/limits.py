"""Limits on clients of one component, and the metric and the log of the requests that they end."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from time import monotonic  # the clock of the event loops
from typing import TYPE_CHECKING

from opentelemetry import metrics

from mesh.allocator import return_free_memory
from mesh.rpc.server.clients.budget import FairBudget, Holding

if TYPE_CHECKING:
    from mesh.config.manifest import EdgeConfig, ServiceConfig
    from mesh.rpc.server.clients.held_response import HeldResponse

__all__ = ["DEFAULT_BUFFERS_BYTES", "LARGE_SIZE", "ClientLimits"]

log = logging.getLogger(__name__)

DEFAULT_UPLOADS = 1000
DEFAULT_BUFFERS_BYTES = 24 * 2**20
DEFAULT_STALL_TIMEOUT = 10.0
LOG_INTERVAL = 10.0
"""Seconds between two log lines about requests that the limits have ended."""
TRIM_FROM_BYTES = 8 * 2**20
"""Bytes held from which on free memory is given back to the operating system."""
TRIM_INTERVAL = 1.0
"""Seconds between two times."""
LARGE_SIZE = 64 * 2**10
"""Bytes from which on a response, or a message of a response stream, counts as large."""
RECENT_RESPONSES = 8
"""Responses of a method, all of them large, of which the smallest is the expected size of the next one."""


class ClientLimits:
    """Limits on what the clients of one component make it wait for, or hold.

    Args:
        uploads: Requests whose bodies may be incomplete at the same time.
        buffers: Bytes of requests and responses that may be held.
        stall: Seconds for which a client may send or read nothing while the component waits for it.
        component: Kind of the component, which names the metric: ``edge`` or ``sidecar``.

    Attributes:
        uploads: The budget of incomplete requests.
        buffers: The budget of bytes.
        stall: As given.
        response_sizes: Path of a method whose responses are large → expected size of one, bytes.
        recent_sizes: Path of a method → sizes of its last responses, if all of them were large.
        written: Bytes of responses that the server has written, appended by any thread until ``collect``.
    """

    __slots__ = (
        "_counter", "_ended", "_logged", "_trimming", "buffers", "recent_sizes", "response_sizes", "stall",
        "uploads", "written",
    )  # fmt: skip

    def __init__(
        self,
        uploads: int = DEFAULT_UPLOADS,
        buffers: int = DEFAULT_BUFFERS_BYTES,
        stall: float = DEFAULT_STALL_TIMEOUT,
        component: str = "edge",
    ) -> None:
        self.uploads = FairBudget(uploads)
        self.buffers = FairBudget(buffers)
        self.stall = stall
        self.response_sizes: dict[str, int] = {}
        self.recent_sizes: dict[str, deque[int]] = {}
        self.written: deque[tuple[HeldResponse, int]] = deque()
        self._ended: Counter[str] = Counter()
        self._logged = 0.0
        self._trimming: asyncio.TimerHandle | None = None
        self._counter = metrics.get_meter(f"mesh.{component}").create_counter(
            f"mesh.{component}.refused", "{request}", "Requests that a limit on clients has refused or ended, by reason"
        )

    @classmethod
    def of_edge(cls, config: EdgeConfig) -> ClientLimits:
        """Return the limits of ``[edge]``."""
        return cls(config.uploads, config.buffer_bytes, float(config.stall))

    @classmethod
    def of_service(cls, config: ServiceConfig) -> ClientLimits:
        """Return the limits of ``[services.NAME]``."""
        return cls(buffers=config.buffer_bytes, stall=float(config.stall), component="sidecar")

    @property
    def held(self) -> int:
        """Bytes that are held."""
        self.collect()
        return self.buffers.used

    def hold(self, holding: Holding, size: int) -> bool:
        """Count bytes that are held.

        Returns:
            False if the budget does not allow them. Then the holding holds nothing.
        """
        self.collect()
        if self._trimming is None and self.buffers.used + size > TRIM_FROM_BYTES:
            self._trimming = asyncio.get_running_loop().call_later(TRIM_INTERVAL, self._trim)
        if self.buffers.add(holding, size):
            return True
        self.count("buffers")
        return False

    def _trim(self) -> None:
        """Give back what is free by now; again later while much is held."""
        self._trimming = None
        return_free_memory()
        if self.held > TRIM_FROM_BYTES:
            self._trimming = asyncio.get_running_loop().call_later(TRIM_INTERVAL, self._trim)

    def collect(self) -> None:
        """Count what the server has written meanwhile no longer."""
        written = self.written
        while written:
            response, size = written.popleft()
            response.on_written(size)

    def learn_size(self, path: str, size: int) -> None:
        """Remember how large the responses of a method are, for the calls to come.

        A method that gives a large response now and then is not one whose responses are large. By the mean of its
        sizes one caller with a request for a whole list would close the method to those that want a page.
        """
        if size <= LARGE_SIZE:
            self.recent_sizes.pop(path, None)
            self.response_sizes.pop(path, None)
            return
        recent = self.recent_sizes.setdefault(path, deque(maxlen=RECENT_RESPONSES))
        recent.append(size)
        if len(recent) == RECENT_RESPONSES:
            self.response_sizes[path] = min(recent)

    def count(self, reason: str) -> None:
        """Count a request that was refused or ended. One log line in ``LOG_INTERVAL`` tells of all of them."""
        self._counter.add(1, {"reason": reason})
        self._ended[reason] += 1
        now = monotonic()
        if now - self._logged >= LOG_INTERVAL:
            self._logged = now
            counts = ", ".join(f"{reason} {number}" for reason, number in sorted(self._ended.items()))
            self._ended.clear()
            log.warning("limits on clients have refused or ended requests since the last such line: %s", counts)
