"""A trivial function for functions-framework."""

from __future__ import annotations

from typing import Any


def hello(request: Any) -> str:  # noqa: ARG001 - its shape
    """Answer at once."""
    return "hello"
