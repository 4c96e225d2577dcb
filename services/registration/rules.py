"""Validation rules of names, e-mail addresses, passwords and roles. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from email_validator import EmailNotValidError, validate_email

from mesh import InvalidArgument

__all__ = ["checked", "fold"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{2,31}")
_ROLE = re.compile(r"[a-z][a-z0-9._-]{0,31}")
_LONGEST_EMAIL = 320
"""Characters: 64 before the @ and 255 after it. A check of megabytes would take seconds."""
_SHORTEST, _LONGEST = 8, 128
"""Limits of a password's length, in characters; the contract login.v1 has the same."""


def checked(fields: Mapping[str, str], prefix: str = "") -> dict[str, str]:
    """Return the fields (name, email, password, role) in their stored form.

    Args:
        fields: Field → value.
        prefix: Prefix of the field's name in a violation (``user.``).

    Raises:
        InvalidArgument: Fields are not valid; it has one violation for each of them.
    """
    found: dict[str, str] = {}
    violations: dict[str, str] = {}
    for field, value in fields.items():
        try:
            found[field] = _RULES[field](value)
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


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("must have 3 to 32 letters (a-z, A-Z), digits, '.', '_' or '-', a letter first")
    return value


def _email(value: str) -> str:
    if len(value) > _LONGEST_EMAIL:
        raise ValueError(f"must be an e-mail address of at most {_LONGEST_EMAIL} characters")
    try:
        return validate_email(value.strip(), check_deliverability=False).normalized
    except EmailNotValidError as error:
        raise ValueError(f"must be an e-mail address: {error}") from None


def _password(value: str) -> str:
    if len(value) > 8 * _LONGEST or not _SHORTEST <= len(unicodedata.normalize("NFKC", value)) <= _LONGEST:
        raise ValueError(f"must have {_SHORTEST} to {_LONGEST} characters")
    return value


def _role(value: str) -> str:
    if not _ROLE.fullmatch(value):
        raise ValueError("must have 1 to 32 letters (a-z), digits, '.', '_' or '-', a letter first")
    return value


_RULES = {"name": _name, "email": _email, "password": _password, "role": _role}
