"""URL of a service's database, as mesh.toml and providers write it, read and checked without a driver.

``postgresql://`` follows libpq's connection URIs (PostgreSQL manual, 34.1.1.2 and 34.1.2), since providers, poolers and
``psql`` write these. Decisions:

- *Every parameter is known.* One that the mesh honours is translated, one whose value asks for what is done anyway is
  dropped, and any other is a fault that says what would be right. A parameter that is passed over in silence can be
  the one that asked for encryption.
- *A fault never repeats a user's text*, because a password with a raw ``/`` or ``@`` in it can end up in every part of
  a URL. Names of parameters and values that are not secret are the exceptions.
- *Text is decoded as libpq does*: ``%20`` is a space and ``+`` is a plus.
- *Only* ``file_faults`` *looks at the disk*, since a file may be on the machine of one service only.
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
    """A URL that cannot be used.

    Attributes:
        faults: What is wrong with it, a line each, without the URL and without a password.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A URL that was read.

    Attributes:
        file: The file of a SQLite database; None for PostgreSQL, which all the others belong to.
        hosts: Names, addresses or folders of sockets, each with its port or None, in the order in which they are tried.
            Empty when the URL names none: the driver then looks at the sockets of this machine; so it does for a host
            that is ``""`` beside its port.
        user: Who logs in, or None for what the driver takes by itself (``PGUSER``, the user of the process).
        password: And its proof, or None (``PGPASSWORD``, a password file).
        database: The database, or None when a service file names it.
        driver: Parameters that asyncpg reads from a URL by libpq's names.
        settings: Settings of the server that are sent at the start of a connection.
        numbers: Parameters that are numbers, by name.
        target: What a server must be (``target_session_attrs``).
        system_roots: TLS trusts the authorities of the system (``sslrootcert=system``).
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
        """The database without user, password and parameters."""
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
    """Return what a URL says.

    Args:
        url: As in mesh.toml.

    Raises:
        UrlError: It cannot be used.
    """
    scheme, colon, rest = url.strip().partition(":")  # what holds a secret ends with a line's end now and then
    scheme = scheme.lower()
    if colon and scheme in _SQLITE:
        return DatabaseUrl(file=_sqlite(rest))
    if not colon or not rest.startswith("//") or scheme not in _POSTGRESQL:
        known = {"sqlite": "sqlite:///", "postgresql": "postgresql://", "postgres": "postgresql://"}
        base = re.split(r"[+3]", scheme)[0]
        if colon and base in known and base != scheme:
            raise UrlError(f"the mesh brings its own driver: it begins with {known[base]}, not with {scheme}://")
        raise UrlError(EXPECTED)
    return _postgresql(rest[2:])


def located(url: str, root: Path) -> str:
    """Return a URL with its scheme as the mesh writes it and its files made absolute; one with faults as it is.

    Args:
        url: As in mesh.toml.
        root: The folder that its files are relative to.
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
    """Return the URL of a SQLite file; what begins an escape or the parameters of a URL is escaped in its name."""
    return "sqlite:///" + str(file).replace("%", "%25").replace("?", "%3F")


def database_faults(url: str, place: str) -> Iterator[Fault]:
    """Check a URL; the faults never show a password."""
    try:
        parse(url)
    except UrlError as error:
        yield from (Fault(place, text) for text in error.faults)


def file_faults(url: DatabaseUrl, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with the files that a URL names; looks at the disk.

    Args:
        url: With absolute files.
        environment: The environment, in which the driver looks for what a URL does not say.
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
            f"sslmode={mode} needs the certificate of an authority: sslrootcert=FILE, or sslrootcert=system for those "
            "that this machine trusts"
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
    """Return the file, of what stands behind ``sqlite:``."""
    path, mark, _ = rest.partition("?")
    if not path.startswith("///"):
        if path.strip("/") in ("", ":memory:"):
            raise UrlError(_IN_MEMORY)
        raise UrlError("a path stands behind three slashes, sqlite:///PATH, and an absolute one behind four")
    path = path[3:]
    if path in ("", ":memory:"):
        raise UrlError(_IN_MEMORY)
    if mark:
        raise UrlError(
            "a SQLite URL takes no parameters: the mesh sets the journal, the locks and the timeouts itself; leave out "
            "what stands behind '?'"
        )
    if path.startswith("~"):
        raise UrlError("'~' is not a folder here: write the path in full, sqlite:////home/…")
    file = Path(_decoded(path))
    if path.endswith("/") or file.name in ("", ".."):
        raise UrlError("it names a folder: add the name of a file")
    return file


_IN_MEMORY = "a database in memory would be another one for each connection: name a file, sqlite:///PATH"


def _decoded(text: str) -> str:
    """Return a text with its escapes decoded.

    Raises:
        UrlError: They are no UTF-8, or hold what ends a text for the server and for the system.
    """
    try:
        found = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise UrlError(f"the bytes behind '%' are no UTF-8; {_ENCODE}") from None
    if "\0" in found:
        raise UrlError("it holds the character U+0000 (%00), which neither a path nor a password can have")
    return found


# -- PostgreSQL --


def _postgresql(rest: str) -> DatabaseUrl:
    """Return what a URL says, of what stands behind ``postgresql://``."""
    head, _, query = _split_query(rest)
    authority, _, path = head.partition("/")
    userinfo, at, hostspec = authority.rpartition("@")
    name, _, secret = userinfo.partition(":")
    if "@" in path:
        raise UrlError(f"the name of the database holds an '@': {_ENCODE}")
    given, several = _given(query)
    # A host that is none may be a part of the password, and so may be what stands behind it: nothing more is said then.
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
    """Return the parameters, and the hosts among them, of which there may be several.

    Raises:
        UrlError: One has no value.
    """
    given: dict[str, str] = {}
    hosts: list[str] = []
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        name, value = _decoded(name), _decoded(value)
        if not equals:
            raise UrlError(
                "a parameter is written NAME=VALUE, and one of them has no value; in a value '&' is written %26"
            )
        if name == "host":
            hosts.append(value)
        elif name == "ssl":  # JDBC's word, which libpq takes too
            given["sslmode"] = {"true": "require", "false": "disable"}.get(value.lower(), value)
        else:
            given[name] = value
    return given, hosts


def _split_query(rest: str) -> tuple[str, str, str]:
    """Split before the parameters: at the first ``?`` behind the password, which may hold one."""
    slash = rest.find("/")
    at = rest.rfind("@", 0, len(rest) if slash < 0 else slash)
    head, mark, query = rest[at + 1 :].partition("?")
    return rest[: at + 1] + head, mark, query


def _hosts(text: str, port: str, *, decode: bool = False) -> tuple[tuple[str, int | None], ...]:
    """Return hosts and ports of ``h1:p1,h2:p2``, or of ``h1,h2`` and ``p1,p2``.

    Raises:
        UrlError: A port is none, or they are not as many as the hosts.
    """
    parts = text.split(",")
    found = [_host(part, decode=decode) for part in parts]
    if len(parts) > 1 and not all(host for host, _ in found):
        raise UrlError("between two commas stands a host")
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
        raise UrlError(f"an IPv6 address stands in brackets, [::1]:5432; and {_ENCODE}")
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
