"""Secret: a text that nothing shows by accident."""

from __future__ import annotations

from hmac import compare_digest
from typing import Any

__all__ = ["Secret"]

HIDDEN = "***"
"""Text in place of a secret."""


class Secret:
    """A password, key or token. It prints, formats, logs and pickles as ``***``; ``reveal`` returns the text.

    A setting of mesh.toml that is written ``{ secret = "name" }`` is one in ``context.settings``. It is false if it is
    empty. Secrets are compared in constant time, and with other secrets only.

    Args:
        text: The secret.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text. Give it to what needs it, and keep no other copy."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __str__(self) -> str:
        return HIDDEN

    def __repr__(self) -> str:
        return f"Secret({HIDDEN!r})"

    def __format__(self, spec: str) -> str:
        return format(HIDDEN, spec)

    def __reduce__(self) -> tuple[Any, ...]:
        return Secret, (HIDDEN,)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self
