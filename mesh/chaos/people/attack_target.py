"""AttackTarget of an attack: address and paths of the server."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ATTACKER_ADDRESS", "AttackTarget"]

ATTACKER_ADDRESS = "127.0.0.66"
"""Source address of attackers on loopback. On Linux each address of 127.0.0.0/8 is there without configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackTarget:
    """Server under attack. A path that it does not have is ""; attacks that need the path are left out.

    At a gRPC server each path is that of a method: of a unary one for ``get``, ``post``, ``large`` and ``hung``.

    Attributes:
        host: Its IPv4 address.
        port: Its port.
        source: Source address of the attacker; "": the system's choice.
        grpc: Whether only gRPC is spoken there, as at a sidecar.
        get: Path of a cheap GET.
        post: Path of a unary POST.
        body: Body of its request.
        large: Path of a GET with a large response; ``large_request`` is its request message at a gRPC server, in
            hexadecimal digits.
        stream: Path of a GET whose response is a server stream that stays open.
        hung: Path of a GET that is never responded to.
        costly: Path of a costly POST.
        costly_bodies: Bodies of its requests, used in turn.
        rate: Costly requests a second that are offered.
        reuse: Whether a body may be sent again. Otherwise the offer ends with the bodies.
    """

    host: str
    port: int
    source: str = ATTACKER_ADDRESS
    grpc: bool = False
    get: str = ""
    post: str = ""
    body: str = "{}"
    large: str = ""
    large_request: str = ""
    stream: str = ""
    hung: str = ""
    costly: str = ""
    costly_bodies: tuple[str, ...] = ()
    rate: float = 0.0
    reuse: bool = True

    @property
    def authority(self) -> str:
        """Value of the header ``host``."""
        return f"{self.host}:{self.port}"

    def as_json(self) -> dict[str, Any]:
        """Return the target as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> AttackTarget:
        """Return the target of JSON values."""
        return cls(**{**value, "costly_bodies": tuple(value["costly_bodies"])})
