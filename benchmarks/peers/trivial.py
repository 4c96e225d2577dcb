"""A trivial function for functions-framework."""

from __future__ import annotations

from typing import Any


def hello(request: Any) -> str:  # noqa: ARG001 - the signature of functions
    """Return a text at once."""
    return "hello"
