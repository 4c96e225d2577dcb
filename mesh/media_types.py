"""Media types (RFC 9110, 8.3): the names that the mesh writes and reads, and the parser of ``content-type``. Pure.

gRPC's own media types are in ``mesh.rpc.framing``.
"""

from __future__ import annotations

__all__ = ["EVENT_STREAM", "JSON", "NDJSON", "OCTET_STREAM", "PROTOBUF", "is_compressible", "is_utf8", "media_type"]

JSON = "application/json"
NDJSON = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"
PROTOBUF = "application/x-protobuf"
OCTET_STREAM = "application/octet-stream"
"""Media type of a ``google.api.HttpBody`` that names none."""

_COMPRESSIBLE = frozenset((
    JSON, NDJSON, PROTOBUF, "application/javascript", "application/protobuf", "application/wasm", "application/xml",
    "application/yaml", "image/svg+xml",
))  # fmt: skip


def media_type(value: bytes | None) -> str:
    """Return the type of a ``content-type`` without its parameters, in lower case; ``""`` for none."""
    return value.partition(b";")[0].strip().lower().decode("latin-1") if value else ""


def is_compressible(kind: str) -> bool:
    """Whether bodies of a media type (without parameters) are not compressed already."""
    return kind.startswith("text/") or kind in _COMPRESSIBLE or kind.endswith(("+json", "+xml"))


def is_utf8(content_type: bytes) -> bool:
    """Whether a ``content-type`` names UTF-8 or no charset."""
    for parameter in content_type.lower().split(b";")[1:]:
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"charset" and value.strip().strip(b'"') not in (b"utf-8", b"utf8"):
            return False
    return True
