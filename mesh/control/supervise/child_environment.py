"""Environment of a child process of ``mesh up``: the variables that the component needs. Pure.

The environment of ``mesh up`` may hold passwords of all services (``MESH_SERVICES_LOGIN_DATABASE``). A service gets
its own and not those of the others. The edge, which faces clients, gets none. Variables that do not belong to the
mesh reach services and the edge unchanged, because functions and telemetry exporters read their own. The broker is a
program of others and gets what any program needs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from mesh.config.secrets import VARIABLE_PREFIX

__all__ = ["for_broker", "for_edge", "for_service"]

_SERVICES = "MESH_SERVICES_"
_PRIVATE_KEYS = ("DATABASE", "SETTINGS", "ENVIRONMENT")
"""Keys of ``[services.NAME]`` whose values only the service itself uses."""
_BROKER_KEYS = re.compile(r"MESH_(BROKER|EVENTS_.*)\Z")
_PROGRAM = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TZDIR|TMPDIR|TERM|NO_COLOR|VIRTUAL_ENV|PYTHON\w*|LD_\w+|DYLD_\w+|"
    r"FAKETIME\w*|GO\w+|XDG_\w+)\Z"
)
"""Variables that programs need to run: search paths, locale, time zone, loader, runtime of Python and Go."""


def for_service(
    environ: Mapping[str, str], name: str, services: Collection[str], secrets: Collection[str] = ()
) -> dict[str, str]:
    """Return the environment of a service: all but the private values and secrets of other services.

    Args:
        environ: The environment of ``mesh up``, with what it adds.
        name: The service, by its name in mesh.toml.
        services: The names of all services.
        secrets: Variables of the secrets that the service uses.
    """
    return {
        variable: value
        for variable, value in environ.items()
        if _owner(variable, services) in (None, name) and (not _is_secret(variable) or variable in secrets)
    }


def for_edge(environ: Mapping[str, str], services: Collection[str], secrets: Collection[str] = ()) -> dict[str, str]:
    """Return the environment of the edge: no private values of services, and no access to the broker."""
    return {
        variable: value
        for variable, value in for_service(environ, "", services, secrets).items()
        if not _BROKER_KEYS.match(variable)
    }


def for_broker(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the broker: what any program needs."""
    return {variable: value for variable, value in environ.items() if _PROGRAM.match(variable)}


def _is_secret(variable: str) -> bool:
    return variable.startswith(VARIABLE_PREFIX)


def _owner(variable: str, services: Collection[str]) -> str | None:
    """Return the service whose private value a variable holds, or None. Names with a common beginning: the longest."""
    if not variable.startswith(_SERVICES):
        return None
    words = variable.removeprefix(_SERVICES)
    for name in sorted(services, key=len, reverse=True):
        prefix = f"{name.upper().replace('-', '_')}_"
        if words.startswith(prefix):
            key = words.removeprefix(prefix)
            return name if any(key == one or key.startswith(f"{one}_") for one in _PRIVATE_KEYS) else None
    return None
