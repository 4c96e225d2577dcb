"""SQLAlchemy engine for a database URL.

SQLAlchemy would pass the parameters of a PostgreSQL URL to asyncpg as arguments, where they do not have libpq's
meaning. So this module makes the connections. asyncpg reads the parameters that it knows (those of TLS above all) from
a URL of its own. The system's certificate authorities, keepalives, and one attempt for each host are done here.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from sqlalchemy import URL, event, exc
from sqlalchemy.ext.asyncio import create_async_engine

from mesh.database.failures import DatabaseError, invalidates_connection
from mesh.database_url import DatabaseUrl, UrlError, file_faults, parse

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["check_files", "create", "parse_url"]

_KEEPALIVES = {
    "keepalives_idle": (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
    "keepalives_interval": (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
    "keepalives_count": (socket.IPPROTO_TCP, "TCP_KEEPCNT"),
    "tcp_user_timeout": (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
}
"""libpq's parameters (PostgreSQL manual, 34.1.2) → socket options. 0 keeps the system's value."""

_ARGUMENT = re.compile(r"(invalid input for query argument \$\d+).*", re.DOTALL)
"""asyncpg's text about an argument that does not fit its type, and after it the value."""


def parse_url(url: str) -> DatabaseUrl:
    """Return a parsed database URL.

    Raises:
        DatabaseError: The URL cannot be used.
    """
    try:
        return parse(url)
    except UrlError as error:
        raise DatabaseError(f"the database's URL: {error}") from None


def check_files(url: DatabaseUrl) -> None:
    """Check that the files that a URL names can be read.

    Raises:
        DatabaseError: One of them cannot be read.
    """
    faults = list(file_faults(url, os.environ))
    if faults:
        raise DatabaseError("; ".join(faults))


def create(url: DatabaseUrl, timeout: float, **pool: Any) -> AsyncEngine:
    """Return an engine.

    Args:
        url: The database's URL.
        timeout: Seconds to wait for a server to accept a connection (``connect_timeout`` overrides it), or for another
            process's lock on a SQLite file.
        pool: SQLAlchemy's arguments for the pool.

    Errors and log lines of SQLAlchemy show no parameters of statements: they are values of rows, passwords among them.
    """
    if url.file is not None:
        file = URL.create("sqlite+aiosqlite", database=str(url.file))  # not parsed, so any name is fine
        return create_async_engine(file, connect_args={"timeout": timeout}, hide_parameters=True, **pool)
    arguments = _arguments(url, timeout)

    async def connect() -> Any:
        return await _connect(url, arguments)

    # These two are SQLAlchemy's arguments. Its URL is empty, so that no parameter reaches its parser.
    own: dict[str, Any] = {"async_creator_fn": connect}
    if "prepared_statement_cache_size" in url.numbers:
        own["prepared_statement_cache_size"] = url.numbers["prepared_statement_cache_size"]
    engine = create_async_engine("postgresql+asyncpg://", connect_args=own, hide_parameters=True, **pool)
    event.listen(engine.sync_engine, "checkout", _check_open)
    event.listen(engine.sync_engine, "handle_error", _invalidate_connection)
    event.listen(engine.sync_engine, "handle_error", _hide_values)
    return engine


def _arguments(url: DatabaseUrl, timeout: float) -> dict[str, Any]:
    """Return asyncpg's arguments, except for those that differ between hosts."""
    numbers = url.numbers
    arguments: dict[str, Any] = {
        "user": url.user,
        "password": url.password,
        "database": url.database,
        "timeout": numbers.get("connect_timeout", timeout) or None,  # libpq: 0 means no timeout
        "server_settings": dict(url.settings),
    }
    if url.driver:
        arguments["dsn"] = f"postgresql://?{urlencode(url.driver, quote_via=quote)}"
    if "statement_cache_size" in numbers:
        arguments["statement_cache_size"] = numbers["statement_cache_size"]
    return arguments


async def _connect(url: DatabaseUrl, arguments: dict[str, Any]) -> Any:
    """Return a connection to the first host that accepts one and fits ``target_session_attrs``.

    asyncpg has one timeout for all hosts. A first host that does not respond would use all of it.
    """
    import asyncpg  # noqa: PLC0415 - loaded only for PostgreSQL

    if url.system_roots:
        arguments = {**arguments, "ssl": _system_roots(url)}
    failure: Exception | None = None
    for target in ("standby", "any") if url.target == "prefer-standby" else (url.target,):
        for host, port in url.hosts or (("", None),):
            try:
                connection = await asyncpg.connect(
                    host=host or None, port=port, target_session_attrs=target, **arguments
                )
            except (
                OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched
            ) as error:  # fmt: skip
                failure = error
            else:
                _keep_alive(connection, url)
                return connection
    assert failure is not None  # noqa: S101 - at least one host was tried
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
    """Turn on TCP keepalives, which notice a dead server machine. libpq does so by default."""
    sock = connection._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has no public way
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6) or url.numbers.get("keepalives") == 0:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, (level, option) in _KEEPALIVES.items():
        value = url.numbers.get(name)
        if value and hasattr(socket, option):
            sock.setsockopt(level, getattr(socket, option), value)


def _check_open(connection: Any, *_: Any) -> None:
    if connection.driver_connection.is_closed():  # the server closed it meanwhile; the pool makes a new one
        raise exc.DisconnectionError


def _hide_values(context: ExceptionContext) -> None:
    """Remove the values of rows from the texts of an error, which reach logs and traces.

    ``hide_parameters`` of SQLAlchemy does not reach them: PostgreSQL's DETAIL (``Key (email)=(…) already exists``), and
    the argument that asyncpg could not encode.
    """
    cause = context.original_exception.__cause__
    if getattr(cause, "detail", None):
        cause.detail = None  # type: ignore[union-attr]
    for error in (context.sqlalchemy_exception, context.original_exception, cause):
        if error is not None and error.args and isinstance(error.args[0], str) and _ARGUMENT.search(error.args[0]):
            error.args = (_ARGUMENT.sub(r"\1", error.args[0]), *error.args[1:])


def _invalidate_connection(context: ExceptionContext) -> None:
    """Make the pool drop its connections after an error that invalidates them."""
    if invalidates_connection(context.original_exception):
        context.is_disconnect = True
