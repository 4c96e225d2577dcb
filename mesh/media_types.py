"""Media types (RFC 9110, 8.3): read from ``content-type`` in one place. Pure."""

from __future__ import annotations

__all__ = ["media_type"]


def media_type(value: bytes | None) -> str:
    """Return the type of a ``content-type``, without its parameters, in lower case; ``""`` for none."""
    return value.partition(b";")[0].strip().lower().decode("latin-1") if value else ""
