"""Settings of login: ``[services.login.settings]`` of mesh.toml, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Settings", "read"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Issuer, audience and lifetimes.

    Attributes:
        issuer: ``iss`` of access tokens.
        audience: ``aud`` of access tokens.
        access: Lifetime of an access token, seconds.
        refresh: Lifetime of a refresh token, seconds; each exchange begins it anew.
        recovery: Lifetime of a recovery of an account, seconds.
        key: Age at which the next signing key replaces a signing key, seconds.
    """

    issuer: str
    audience: str
    access: int
    refresh: int
    recovery: int
    key: int


def read(settings: Mapping[str, Any]) -> Settings:
    """Return the settings, with defaults for missing ones.

    Raises:
        ValueError: A value is not valid; the message names it.
    """
    return Settings(
        issuer=str(settings.get("issuer", "login")),
        audience=str(settings.get("audience", "mesh")),
        access=60 * _number(settings, "access_minutes", 15),
        refresh=86_400 * _number(settings, "refresh_days", 30),
        recovery=60 * _number(settings, "recovery_minutes", 30),
        key=86_400 * _number(settings, "key_days", 30),
    )


def _number(settings: Mapping[str, Any], key: str, default: int) -> int:
    value = settings.get(key, default)
    text = str(value)
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"[services.login.settings] {key}: expected a whole number above 0, got {value!r}")
    return int(text)
