"""Function names of methods: ``GetUser`` → ``get_user``. Pure."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Collection

__all__ = ["escaped", "function_name", "function_names"]

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def function_name(method: str) -> str:
    """Return the function name of a method: ``GetUser`` → ``get_user``. A Python keyword gets a final ``_``."""
    return escaped(_WORDS.sub("_", method).lower())


def escaped(name: str) -> str:
    """Return the name, with a final ``_`` if it is a Python keyword."""
    return f"{name}_" if keyword.iskeyword(name) else name


def function_names(methods: Collection[str]) -> dict[str, str]:
    """Return method name → function name for the methods of one service.

    Methods with equal results (``GetURL``, ``GetUrl``) keep their own names.
    """
    count = Counter(map(function_name, methods))
    names = {method: function_name(method) for method in methods}
    return {method: name if count[name] == 1 else escaped(method) for method, name in names.items()}
