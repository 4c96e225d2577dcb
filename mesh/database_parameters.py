"""Parameters of PostgreSQL URLs: the supported ones, and corrections for all others. Pure.

The names are libpq's (PostgreSQL manual, 34.1.2).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

__all__ = ["DRIVER", "FILES", "NUMBERS", "faults", "settings"]

FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")
DRIVER = (
    "sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl", "sslnegotiation",
    "ssl_min_protocol_version", "ssl_max_protocol_version", "passfile", "krbsrvname", "gsslib", "service",
)  # fmt: skip
"""Parameters that asyncpg reads from a URL itself."""
_ADDRESS = ("host", "port", "dbname", "database", "user", "password")
_SETTINGS = ("application_name", "fallback_application_name", "options")
NUMBERS = (
    "connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout",
    "statement_cache_size", "prepared_statement_cache_size",
)  # fmt: skip
_KNOWN = (*DRIVER, *_ADDRESS, *_SETTINGS, *NUMBERS, "target_session_attrs", "channel_binding", "client_encoding")

_VALUES: Mapping[str, tuple[str, ...]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "ssl_min_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "ssl_max_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "gsslib": ("gssapi", "sspi"),
}
_WITHOUT_EFFECT: Mapping[str, tuple[str, ...]] = {
    "channel_binding": ("prefer", "disable"),
    "client_encoding": ("utf8", "utf-8", "unicode", "auto"),
    "gssencmode": ("prefer", "disable"),
    "load_balance_hosts": ("disable",),
    "max_protocol_version": ("3.0", "3.2", "latest"),
    "min_protocol_version": ("3.0",),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
"""libpq parameter → values that equal the behaviour of the mesh, in lower case."""
_REFUSED: Mapping[str, str] = {
    "channel_binding": "the driver (asyncpg) has no channel binding; sslmode=verify-full&sslrootcert=system proves "
    "the server's identity: write that instead of channel_binding=require",
    "client_encoding": "the driver speaks UTF-8 only: leave it out",
    "gssencmode": "the driver has no GSSAPI encryption: use sslmode",
    "hostaddr": "write the address as the host",
    "load_balance_hosts": "the hosts are tried in their order: leave it out",
    "max_protocol_version": "the driver speaks protocol 3.0: leave it out",
    "min_protocol_version": "the driver speaks protocol 3.0: leave it out",
    "require_auth": "the driver cannot insist on a way of authentication: leave it out, and use sslmode=verify-full",
    "requirepeer": "the driver cannot check the owner of a socket: leave it out",
    "sslcertmode": "the driver sends sslcert when the server asks for it: leave it out",
    "sslcompression": "TLS compression is not supported: leave it out",
    "sslcrldir": "write the list of revoked certificates as one file: sslcrl=FILE",
    "sslsni": "the driver always names the host in TLS: leave it out",
}
_POOLED = (
    "a pooler in transaction mode keeps neither the locks nor the notifications that migrations and the outbox need: "
    "connect to the server itself, or to the pooler's session mode, and leave it out"
)
_POOL = "each process keeps up to 20 connections; that is not set in the URL: leave it out"
_FOREIGN: Mapping[str, str] = {
    "pgbouncer": _POOLED,
    "schema": "write options=-csearch_path%3DSCHEMA",
    "currentschema": "write options=-csearch_path%3DSCHEMA",
    "applicationname": "write application_name",
    "logintimeout": "write connect_timeout",
    "connecttimeout": "write connect_timeout",
    "timeout": "write connect_timeout",
    "sockettimeout": "write options=-cstatement_timeout%3DMILLISECONDS",
    "socket_timeout": "write options=-cstatement_timeout%3DMILLISECONDS",
    "command_timeout": "write options=-cstatement_timeout%3DMILLISECONDS",
    "tcpkeepalive": "write keepalives",
    "targetservertype": "write target_session_attrs",
    "sslaccept": "write sslmode=verify-full, or sslmode=require",
    "sslidentity": "write sslcert and sslkey",
    "preparethreshold": "write prepared_statement_cache_size=0 to have no prepared statements kept",
    "connection_limit": _POOL,
    "pool_timeout": _POOL,
    "pool_size": _POOL,
    "max_overflow": _POOL,
    "pool_recycle": _POOL,
    "pool_max_conns": _POOL,
    "pool_min_conns": _POOL,
}
"""Parameter of another driver (JDBC, Prisma, SQLAlchemy, pgx), in lower case → correction."""
_SERVER = (
    "search_path", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "timezone", "datestyle",
    "transaction_timeout", "default_transaction_isolation", "default_transaction_read_only", "role", "work_mem", "jit",
)  # fmt: skip
"""Server settings that some drivers accept as parameters."""


def faults(given: Mapping[str, str]) -> Iterator[str]:
    """Yield the faults of the parameters."""
    # A raw '&' in a password makes the rest of it look like a parameter.
    secret = "password" in given or "sslpassword" in given
    for name, value in given.items():
        yield from _parameter(name, value, secret=secret)
    mode = given.get("sslmode", "verify-full")
    if given.get("sslrootcert") == "system" and mode in _VALUES["sslmode"] and mode != "verify-full":
        yield f"sslrootcert=system goes with sslmode=verify-full, not with {mode}: anybody can have such a certificate"
    if given.get("sslnegotiation") == "direct" and mode in ("disable", "allow", "prefer"):
        yield "sslnegotiation=direct needs sslmode=require, verify-ca or verify-full"
    if given.get("sslkey") and not given.get("sslcert"):
        yield "sslkey belongs to a certificate: add sslcert=FILE"


def _parameter(name: str, value: str, *, secret: bool) -> Iterator[str]:
    if name in _WITHOUT_EFFECT or name in _REFUSED:
        if value.lower() not in _WITHOUT_EFFECT.get(name, ()):
            yield f"{name}: {_REFUSED[name]}"
    elif name not in _KNOWN:
        yield _unknown(name, secret=secret)
    elif name in _VALUES and value and value not in _VALUES[name]:
        yield f"{name} is one of {', '.join(_VALUES[name])}"
    elif name in NUMBERS and value and not re.fullmatch(r"\d{1,9}", value):
        yield f"{name} is a whole number"


def _unknown(name: str, *, secret: bool) -> str:
    low = name.lower()
    if low in _FOREIGN:
        return f"{name!r} is not a parameter of PostgreSQL's own URLs: {_FOREIGN[low]}"
    if low in _SERVER:
        return f"{name} is a setting of the server: write options=-c{low}%3DVALUE"
    close = difflib.get_close_matches(low, [*_KNOWN, *_WITHOUT_EFFECT, *_REFUSED], n=1, cutoff=0.7)
    if close:
        return f"unknown parameter {name!r}; did you mean {close[0]}?"
    known = f"known: {', '.join(sorted(_KNOWN))}"
    if secret or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]{0,40}", name):
        return f"a parameter is none that is known, or a value holds a raw '&', which is written %26 ({known})"
    return f"unknown parameter {name!r} ({known})"


def settings(given: Mapping[str, str]) -> dict[str, str]:
    """Return the server settings that a new connection sends."""
    name = given.get("application_name") or given.get("fallback_application_name")
    options = given.get("options")
    return {**({"application_name": name} if name else {}), **({"options": options} if options else {})}
