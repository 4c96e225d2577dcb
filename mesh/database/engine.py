"""SQLAlchemy's engine for the URL of a database.

SQLAlchemy would hand the parameters of a PostgreSQL URL to asyncpg as arguments, which is not what libpq means by them.
So connections are made here: asyncpg reads what it knows from a URL of its own (the TLS parameters, above all), and the
rest is done for it: the system's authorities, keepalives, and hosts that are tried in turn.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from sqlalchemy import URL, event, exc
from sqlalchemy.ext.asyncio import create_async_engine

from mesh.database.failures import DatabaseError, lost
from mesh.database_url import DatabaseUrl, UrlError, file_faults, parse

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["check_files", "create", "read"]

_KEEPALIVES = {
    "keepalives_idle": (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
    "keepalives_interval": (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
    "keepalives_count": (socket.IPPROTO_TCP, "TCP_KEEPCNT"),
    "tcp_user_timeout": (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
}
"""libpq's parameters (PostgreSQL manual, 34.1.2) → options of the socket; 0 leaves what the system has."""


def read(url: str) -> DatabaseUrl:
    """Return what a URL says.

    Raises:
        DatabaseError: It cannot be used.
    """
    try:
        return parse(url)
    except UrlError as error:
        raise DatabaseError(f"the database's URL: {error}") from None


def check_files(url: DatabaseUrl) -> None:
    """Check that the files that a URL names can be read.

    Raises:
        DatabaseError: One cannot.
    """
    faults = list(file_faults(url, os.environ))
    if faults:
        raise DatabaseError("; ".join(faults))


def create(url: DatabaseUrl, wait: float, **pool: Any) -> AsyncEngine:
    """Return an engine.

    Args:
        url: Of the database.
        wait: Seconds to wait for a server to accept a connection (``connect_timeout`` overrides it), or for another
            process's lock on a SQLite file.
        pool: SQLAlchemy's arguments for the pool.
    """
    if url.file is not None:
        file = URL.create("sqlite+aiosqlite", database=str(url.file))  # parsed by nobody, whatever the name holds
        return create_async_engine(file, connect_args={"timeout": wait}, **pool)
    arguments = _arguments(url, wait)

    async def connect() -> Any:
        return await _connect(url, arguments)

    # These two are SQLAlchemy's; its URL is empty, so that none of ours reaches its parser.
    own: dict[str, Any] = {"async_creator_fn": connect}
    if "prepared_statement_cache_size" in url.numbers:
        own["prepared_statement_cache_size"] = url.numbers["prepared_statement_cache_size"]
    engine = create_async_engine("postgresql+asyncpg://", connect_args=own, **pool)
    event.listen(engine.sync_engine, "checkout", _check_open)
    event.listen(engine.sync_engine, "handle_error", _give_up)
    return engine


def _arguments(url: DatabaseUrl, wait: float) -> dict[str, Any]:
    """Return asyncpg's arguments, but those that differ between hosts."""
    numbers = url.numbers
    made: dict[str, Any] = {
        "user": url.user,
        "password": url.password,
        "database": url.database,
        "timeout": numbers.get("connect_timeout", wait) or None,  # libpq: 0 waits for ever
        "server_settings": dict(url.settings),
    }
    if url.driver:
        made["dsn"] = f"postgresql://?{urlencode(url.driver, quote_via=quote)}"
    if "statement_cache_size" in numbers:
        made["statement_cache_size"] = numbers["statement_cache_size"]
    return made


async def _connect(url: DatabaseUrl, arguments: dict[str, Any]) -> Any:
    """Return a connection to the first host that is there and is what it must be.

    asyncpg tries several hosts within one timeout, which a first host that does not answer would use up alone.
    """
    import asyncpg  # noqa: PLC0415 - only who has a PostgreSQL loads it

    if url.system_roots:
        arguments = {**arguments, "ssl": _system_roots(url)}
    failure: Exception | None = None
    for target in ("standby", "any") if url.target == "prefer-standby" else (url.target,):
        for host, port in url.hosts or (("", None),):
            try:
                made = await asyncpg.connect(host=host or None, port=port, target_session_attrs=target, **arguments)
            except (
                OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched
            ) as error:  # fmt: skip
                failure = error
            else:
                _keep_alive(made, url)
                return made
    assert failure is not None  # noqa: S101 - there is always a host
    raise failure


def _system_roots(url: DatabaseUrl) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["postgresql"])
    driver = url.driver
    if "sslcert" in driver:
        context.load_cert_chain(driver["sslcert"], driver.get("sslkey"), driver.get("sslpassword", ""))
    if "sslcrl" in driver:
        context.load_verify_locations(driver["sslcrl"])
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    return context


def _keep_alive(connection: Any, url: DatabaseUrl) -> None:
    """Have the system notice that the server's machine is gone, as libpq does by default."""
    held = connection._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has no other way to it
    if held is None or held.family not in (socket.AF_INET, socket.AF_INET6) or url.numbers.get("keepalives") == 0:
        return
    held.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, (level, option) in _KEEPALIVES.items():
        value = url.numbers.get(name)
        if value and hasattr(socket, option):
            held.setsockopt(level, getattr(socket, option), value)


def _check_open(connection: Any, *_: Any) -> None:
    if connection.driver_connection.is_closed():  # the server ended it meanwhile: the pool makes another one
        raise exc.DisconnectionError


def _give_up(context: ExceptionContext) -> None:
    """Have the pool drop its connections when the error says that they are of no use any more."""
    if lost(context.original_exception):
        context.is_disconnect = True
