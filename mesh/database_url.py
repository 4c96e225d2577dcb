"""Database URLs: parser and checks of SQLite and PostgreSQL URLs, without a driver.

``postgresql://`` follows libpq's connection URIs (PostgreSQL manual, 34.1.1.2 and 34.1.2), since providers, poolers and
``psql`` write these. Decisions:

- *No parameter is ignored.* The mesh translates a supported one and drops one whose value equals its own behaviour. Any
  other is a fault with the correction, because an ignored parameter may be the one that requires encryption.
- *A fault never repeats text of the URL*, because a password with a raw ``/`` or ``@`` can end up in every part of it.
  Names of parameters and values that are no secrets are the exceptions.
- *Escapes are decoded as in libpq*: ``%20`` is a space and ``+`` is a plus.
- *Only* ``file_faults`` *reads the disk*, since a file may exist on the machine of one service only.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv6Address
from pathlib import Path
from urllib.parse import quote, unquote

from mesh import database_parameters as parameters
from mesh.faults import Fault

__all__ = ["DatabaseUrl", "UrlError", "database_faults", "file_faults", "located", "parse", "sqlite_url"]

EXPECTED = "expected sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME"
_ENCODE = "in a user or a password '/' is written %2F, '@' %40, ':' %3A, '?' %3F and '%' %25"
_MAX_PORT = 65535

_SQLITE, _POSTGRESQL = (
    ("sqlite", "sqlite+aiosqlite"),
    ("postgresql", "postgres", "postgresql+asyncpg", "postgres+asyncpg"),
)


class UrlError(ValueError):
    """A database URL is invalid.

    Attributes:
        faults: One line for each fault, without the URL and without a password.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """Parsed database URL.

    Attributes:
        file: File of a SQLite database; None for PostgreSQL. The other attributes are for PostgreSQL.
        hosts: Names, addresses or socket folders, each with its port or None, in the order of connection attempts.
            Without hosts the driver uses the sockets of this machine, as it does for a host ``""``.
        user: User name, or None: the driver's default (``PGUSER``, the user of the process).
        password: Password, or None: the driver's default (``PGPASSWORD``, a password file).
        database: Name of the database, or None if a service file has it.
        driver: Parameters that asyncpg reads from a URL by their libpq names.
        settings: Server settings that a new connection sends.
        numbers: Numeric parameters by name.
        target: Required role of the server (``target_session_attrs``).
        system_roots: Whether TLS trusts the authorities of the system (``sslrootcert=system``).
    """

    file: Path | None = None
    hosts: tuple[tuple[str, int | None], ...] = ()
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    driver: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    target: str = "any"
    system_roots: bool = False

    @property
    def where(self) -> str:
        """URL without user, password and parameters."""
        if self.file is not None:
            return f"sqlite:///{self.file}"
        sockets = any(host.startswith("/") for host, _ in self.hosts)
        hosts = ",".join(f"{_bracketed(host)}{f':{port}' if port else ''}" for host, port in self.hosts)
        at = f"/{quote(self.database or '')}"
        return f"postgresql://{at}?host={hosts}" if sockets else f"postgresql://{hosts}{at}"

    def __str__(self) -> str:
        if self.user is None:
            return self.where
        password = "" if self.password is None else ":***"
        return self.where.replace("://", f"://{quote(self.user, safe='')}{password}@", 1)


def parse(url: str) -> DatabaseUrl:
    """Return the parsed URL.

    Args:
        url: URL as in mesh.toml.

    Raises:
        UrlError: The URL is invalid.
    """
    scheme, colon, rest = url.strip().partition(":")  # secrets from files often end with a newline
    scheme = scheme.lower()
    if colon and scheme in _SQLITE:
        return DatabaseUrl(file=_sqlite(rest))
    if not colon or not rest.startswith("//") or scheme not in _POSTGRESQL:
        known = {"sqlite": "sqlite:///", "postgresql": "postgresql://", "postgres": "postgresql://"}
        base = re.split(r"[+3]", scheme)[0]
        if colon and base in known and base != scheme:
            raise UrlError(f"the mesh has its own driver: begin the URL with {known[base]}, not with {scheme}://")
        raise UrlError(EXPECTED)
    return _postgresql(rest[2:])


def located(url: str, root: Path) -> str:
    """Return a URL with a normalized scheme and absolute paths. An invalid URL is returned unchanged.

    Args:
        url: URL as in mesh.toml.
        root: Folder that paths in the URL are relative to.
    """
    try:
        parsed = parse(url)
    except UrlError:
        return url
    if parsed.file is not None:
        return sqlite_url((root / parsed.file).resolve())
    _, _, rest = url.strip().partition("://")
    head, mark, query = _split_query(rest)
    parts = []
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        path = unquote(value)
        if name in parameters.FILES and path and not (name == "sslrootcert" and path == "system"):
            parts.append(f"{name}={quote(str((root / path).resolve()))}")
        else:
            parts.append(part)
    return f"postgresql://{head}{mark}{'&'.join(parts)}"


def sqlite_url(file: Path) -> str:
    """Return the URL of a SQLite file, with ``%`` and ``?`` of its path escaped."""
    return "sqlite:///" + str(file).replace("%", "%25").replace("?", "%3F")


def database_faults(url: str, place: str) -> Iterator[Fault]:
    """Yield the faults of a URL. They never show a password."""
    try:
        parse(url)
    except UrlError as error:
        yield from (Fault(place, text) for text in error.faults)


def file_faults(url: DatabaseUrl, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the faults of the files that a URL names. Reads the disk.

    Args:
        url: URL with absolute paths.
        environment: The environment, from which the driver takes defaults.
    """
    driver = url.driver
    unreadable = list(_unreadable(driver))
    yield from unreadable or _unusable(driver)
    if "service" in driver:
        services = ConfigParser(interpolation=None)
        path = environment.get("PGSERVICEFILE") or str(Path.home() / ".pg_service.conf")
        services.read(path)
        if driver["service"] not in services:
            yield f"service: {path} has no [{driver['service']}]"
    roots = driver.get("sslrootcert") or environment.get("PGSSLROOTCERT") or url.system_roots
    if roots == "system":
        yield "PGSSLROOTCERT=system: write sslrootcert=system into the URL instead"
    mode = driver.get("sslmode", "")
    if mode.startswith("verify-") and not roots and not (Path.home() / ".postgresql" / "root.crt").exists():
        yield (
            f"sslmode={mode} needs certificate authorities: sslrootcert=FILE, or sslrootcert=system for those "
            "of this machine"
        )


def _unreadable(driver: Mapping[str, str]) -> Iterator[str]:
    for name in parameters.FILES:
        if path := driver.get(name):
            try:
                with Path(path).open("rb"):
                    pass
            except OSError as error:
                yield f"{name}: {path}: {(error.strerror or str(error)).lower()}"


def _unusable(driver: Mapping[str, str]) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("sslrootcert", "sslcrl"):
        try:
            if name in driver:
                context.load_verify_locations(driver[name])
        except ssl.SSLError:
            yield f"{name}: {driver[name]} holds nothing in PEM form"
    try:
        if "sslcert" in driver:
            context.load_cert_chain(driver["sslcert"], driver.get("sslkey"), driver.get("sslpassword", ""))
    except ssl.SSLError:
        yield "sslcert: the certificate, the key in sslkey and the password in sslpassword do not go together"


# -- SQLite --


def _sqlite(rest: str) -> Path:
    """Return the file of the text after ``sqlite:``."""
    path, mark, _ = rest.partition("?")
    if not path.startswith("///"):
        if path.strip("/") in ("", ":memory:"):
            raise UrlError(_IN_MEMORY)
        raise UrlError("write a relative path after three slashes, sqlite:///PATH, and an absolute one after four")
    path = path[3:]
    if path in ("", ":memory:"):
        raise UrlError(_IN_MEMORY)
    if mark:
        raise UrlError(
            "a SQLite URL has no parameters: the mesh sets the journal, the locks and the timeouts itself; remove '?' "
            "and the text after it"
        )
    if path.startswith("~"):
        raise UrlError("'~' is not a folder here: write the path in full, sqlite:////home/…")
    file = Path(_decoded(path))
    if path.endswith("/") or file.name in ("", ".."):
        raise UrlError("the path is a folder: add the name of a file")
    return file


_IN_MEMORY = "each connection would have its own database in memory: name a file, sqlite:///PATH"


def _decoded(text: str) -> str:
    """Return a text with its escapes decoded.

    Raises:
        UrlError: The escapes are no UTF-8, or decode to NUL, which ends a text for the server and for the system.
    """
    try:
        found = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise UrlError(f"the bytes after '%' are no UTF-8; {_ENCODE}") from None
    if "\0" in found:
        raise UrlError("a path or a password cannot contain the character U+0000 (%00)")
    return found


# -- PostgreSQL --


def _postgresql(rest: str) -> DatabaseUrl:
    """Return the parsed URL of the text after ``postgresql://``."""
    head, _, query = _split_query(rest)
    authority, _, path = head.partition("/")
    userinfo, at, hostspec = authority.rpartition("@")
    name, _, secret = userinfo.partition(":")
    if "@" in path:
        raise UrlError(f"the name of the database contains '@': {_ENCODE}")
    given, several = _given(query)
    # An invalid host may be a part of the password, and so may the text after it. So no further fault is reported.
    hosts = _hosts(",".join(several) or hostspec, given.get("port", ""), decode=not several)
    faults = list(parameters.faults(given))
    database = _decoded(path) or given.get("dbname") or given.get("database") or None
    if database is None and "service" not in given:
        faults.append("the name of the database is missing: postgresql://USER:PASSWORD@HOST:PORT/NAME")
    if faults:
        raise UrlError(*faults)
    roots = given.get("sslrootcert") == "system"
    if roots:
        given.setdefault("sslmode", "verify-full")
        del given["sslrootcert"]
    return DatabaseUrl(
        hosts=hosts,
        user=(_decoded(name) if at else "") or given.get("user") or None,
        password=(_decoded(secret) if at else "") or given.get("password") or None,
        database=database,
        driver={key: value for key, value in given.items() if key in parameters.DRIVER and value},
        settings=parameters.settings(given),
        numbers={key: int(value) for key, value in given.items() if key in parameters.NUMBERS and value},
        target=given.get("target_session_attrs") or "any",
        system_roots=roots,
    )


def _given(query: str) -> tuple[dict[str, str], list[str]]:
    """Return the parameters and the hosts, which may occur several times.

    Raises:
        UrlError: A parameter has no value.
    """
    given: dict[str, str] = {}
    hosts: list[str] = []
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        name, value = _decoded(name), _decoded(value)
        if not equals:
            raise UrlError("a parameter has no value: write NAME=VALUE; in a value '&' is written %26")
        if name == "host":
            hosts.append(value)
        elif name == "ssl":  # JDBC's name, which libpq accepts too
            given["sslmode"] = {"true": "require", "false": "disable"}.get(value.lower(), value)
        else:
            given[name] = value
    return given, hosts


def _split_query(rest: str) -> tuple[str, str, str]:
    """Split the text at the first ``?`` after the password, which may contain one."""
    slash = rest.find("/")
    at = rest.rfind("@", 0, len(rest) if slash < 0 else slash)
    head, mark, query = rest[at + 1 :].partition("?")
    return rest[: at + 1] + head, mark, query


def _hosts(text: str, port: str, *, decode: bool = False) -> tuple[tuple[str, int | None], ...]:
    """Return hosts and ports of ``h1:p1,h2:p2``, or of ``h1,h2`` and ``p1,p2``.

    Raises:
        UrlError: A port is invalid, or the number of ports is not that of the hosts.
    """
    parts = text.split(",")
    found = [_host(part, decode=decode) for part in parts]
    if len(parts) > 1 and not all(host for host, _ in found):
        raise UrlError("a host is missing between two commas")
    ports = [_port(one) for one in port.split(",")] if port else []
    if len(ports) > 1 and len(ports) != len(found):
        raise UrlError(f"{len(ports)} ports for {len(found)} hosts: name one port, or one for each host")
    if ports:
        ports *= len(found) // len(ports)
        found = [(host, new) for (host, _), new in zip(found, ports, strict=True)]
    return () if found == [("", None)] else tuple(found)


def _host(text: str, *, decode: bool) -> tuple[str, int | None]:
    match = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text)
    if match:
        return _decoded(match[1]) if decode else match[1], _port(match[2] or "")
    if text.startswith("/") or (not decode and _is_ipv6(text)):
        return text, None
    if text.count(":") > 1:
        raise UrlError(f"write an IPv6 address in brackets, [::1]:5432; and {_ENCODE}")
    host, _, port = text.partition(":")
    return _decoded(host) if decode else host, _port(port)


def _is_ipv6(text: str) -> bool:
    try:
        return bool(IPv6Address(text))
    except AddressValueError:
        return False


def _port(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"\d{1,5}", text) or not 0 < int(text) <= _MAX_PORT:
        raise UrlError(f"a port is a number from 1 to {_MAX_PORT}; {_ENCODE}")
    return int(text)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("/") else host
