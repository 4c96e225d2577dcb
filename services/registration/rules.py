"""Checks of e-mail addresses and passwords that the rules of the contract cannot make. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from email_validator import EmailNotValidError, validate_email

from mesh import InvalidArgument

__all__ = ["checked", "fold"]

_SHORTEST, _LONGEST = 8, 128
"""Limits of a password's length in characters, as in the contract: here, in its normal form (NFKC)."""


def checked(fields: Mapping[str, str], prefix: str = "") -> dict[str, str]:
    """Return the fields in their stored form.

    Args:
        fields: Field → value, which meets the rules of the contract.
        prefix: Prefix of the field's name in a violation (``user.``).

    Raises:
        InvalidArgument: Fields are not valid; it has one violation for each of them.
    """
    found: dict[str, str] = {}
    violations: dict[str, str] = {}
    for field, value in fields.items():
        try:
            found[field] = _CHECKS[field](value) if field in _CHECKS else value
        except ValueError as error:
            violations[prefix + field] = str(error)
    if violations:
        raise InvalidArgument(
            "; ".join(f"{field}: {text}" for field, text in violations.items()), violations=violations
        )
    return found


def fold(text: str) -> str:
    """Return the form of a name or address for comparisons without regard to case."""
    return unicodedata.normalize("NFC", text.casefold())


def _email(value: str) -> str:
    try:
        return validate_email(value.strip(), check_deliverability=False).normalized
    except EmailNotValidError as error:
        raise ValueError(f"must be an e-mail address: {error}") from None


def _password(value: str) -> str:
    if not _SHORTEST <= len(unicodedata.normalize("NFKC", value)) <= _LONGEST:
        raise ValueError(f"must have {_SHORTEST} to {_LONGEST} characters")
    return value


_CHECKS = {"email": _email, "password": _password}
