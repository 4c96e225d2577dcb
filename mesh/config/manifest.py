"""mesh.toml and the environment → a frozen ``Manifest``. The only module that reads either.

Any value can be overridden by the environment: ``services.login.database`` is ``MESH_SERVICES_LOGIN_DATABASE``. A value
is read as TOML where its type needs it (``true``, ``["a", "b"]``), lists also as ``a,b``. The standard ``OTEL_*``
variables are OpenTelemetry's own and are read by it.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from mesh.address import ANY, reachable, split
from mesh.config.edge import CorsConfig, RateLimitConfig, cors_faults, metadata_faults, proxy_faults
from mesh.config.environment import override
from mesh.config.events import EventsConfig, broker_faults, events_faults
from mesh.config.lambda_function import LambdaConfig, LambdaFunction, read, stray
from mesh.config.values import Duration, Rate, Size, TimeLimit
from mesh.config.workers import WorkersConfig, workers_faults
from mesh.database_url import database_faults, located, parse
from mesh.faults import Fault, Faults

__all__ = [
    "AuthConfig", "CorsConfig", "Duration", "EdgeConfig", "EventsConfig", "Manifest", "Rate", "RateLimitConfig",
    "ServiceConfig", "Size", "WorkersConfig", "load",
]  # fmt: skip

PREFIX = "MESH_"
PRIVATE = "MESH_INTERNAL_"
"""Variables that ``mesh up`` sets for the processes that it starts; they are not values of mesh.toml."""
_FILES = ("credentials", "nkey", "ca", "certificate", "private_key")
"""Keys of ``[events]`` that name files."""


TableT = TypeVar("TableT", bound=msgspec.Struct)


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of mesh.toml: typed, frozen, and no key that means nothing."""


class AuthConfig(_Table, frozen=True):
    """``[auth]``: how user tokens (JWT) are verified. Absent: no token is accepted.

    Attributes:
        issuer: The ``iss`` that a token must have.
        audience: The ``aud`` that a token must have.
        jwks: Where the public keys are: a URL, or a method of the mesh (``login.v1.Login/GetKeys``) that takes nothing
            and answers a JWK set (RFC 7517).
        roles: The claim that lists the user's roles.
        leeway: How far clocks may differ.
    """

    issuer: str
    audience: str
    jwks: str
    roles: str = "roles"
    leeway: Duration = Duration(30)


class EdgeConfig(_Table, frozen=True):
    """``[edge]``: the HTTP door. Absent: there is none.

    Attributes:
        listen: ``host:port``; port 0 picks a free one.
        max_body: Largest request body.
        timeout: The longest that a request may take when its method says nothing, and that the body of any may take.
        concurrency: Requests in flight.
        queue: Requests that may wait for a place; beyond that 429.
        drain: How long a stop waits for what is in flight.
        max_uri: Longest path with its query; beyond that 414.
        max_headers: Largest header section; beyond that 431.
        cors: The origins whose pages may read the answers, or a table that says more; empty: none.
        metadata: Request headers, in lower case, that go on to functions as metadata.
        trusted_proxies: Addresses and networks of the proxies whose ``Forwarded`` and ``X-Forwarded-*`` are believed.
        ignore_unknown_fields: Pass over JSON fields that a message does not have, instead of 400.
        rate_limit: How often one caller may ask.
    """

    listen: str = "127.0.0.1:8080"
    max_body: Size = Size(4 * 2**20)
    timeout: TimeLimit = TimeLimit(30)
    concurrency: int = 1000
    queue: int = 1000
    drain: Duration = Duration(10)
    max_uri: Size = Size(8 * 2**10)
    max_headers: Size = Size(32 * 2**10)
    cors: tuple[str, ...] | CorsConfig = ()
    metadata: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    ignore_unknown_fields: bool = False
    rate_limit: RateLimitConfig = RateLimitConfig()

    @property
    def cors_rules(self) -> CorsConfig:
        """The table that ``cors`` stands for."""
        return self.cors if isinstance(self.cors, CorsConfig) else CorsConfig(origins=self.cors)


class ServiceConfig(LambdaConfig, frozen=True):
    """``[services.NAME]``: where and how big a service runs.

    Attributes:
        module: The Python module that holds its functions.
        serves: Full names of the services of the contract that it serves.
        listen: ``host:port`` of its sidecar; port 0 picks a free one.
        address: Where others reach it, if not at ``listen``: one or more ``host:port``; a name may stand for several
            addresses and is resolved again as time passes.
        database: Its URL (``sqlite:///…`` relative to mesh.toml, ``postgresql://…``; docs/databases.md), or ``""``.
        migrations: Folder of Alembic versions, relative to mesh.toml; ``""``: ``migrations`` beside the module, if it
            is there.
        concurrency: Calls in flight.
        queue: Calls that may wait for a place; beyond that RESOURCE_EXHAUSTED.
        max_message: Largest message accepted.
        drain: How long a stop waits for what is in flight.
        workers: The processes that its functions run in; absent: the sidecar's own.
        settings: Values for the service's own code (``context.settings``).

    The other keys, of ``mesh.config.lambda_function.LambdaConfig``, make it a Lambda function; ``module`` and
    ``serves`` follow from them.
    """

    module: str = ""
    serves: tuple[str, ...] = ()
    listen: str = "127.0.0.1:0"
    address: tuple[str, ...] = ()
    database: str = ""
    migrations: str = ""
    concurrency: int = 1000
    queue: int = 1000
    max_message: Size = Size(4 * 2**20)
    drain: Duration = Duration(10)
    workers: WorkersConfig | None = None
    settings: dict[str, Any] = {}  # noqa: RUF012 - msgspec gives each its own

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others reach it."""
        return self.address or (reachable(self.listen),)


class _ManifestFile(_Table, frozen=True):
    """The whole of mesh.toml."""

    protos: tuple[str, ...] = ("protos",)
    stubs: str = "gen"
    state: str = ".mesh"
    channel: str = "ngh2"
    broker: str = ""
    auth: AuthConfig | None = None
    edge: EdgeConfig | None = None
    events: EventsConfig = EventsConfig()
    services: dict[str, dict[str, Any]] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is deployed: everything that mesh.toml and the environment say.

    Attributes:
        file: The file it was read from.
        protos: Import roots, absolute.
        stubs: The folder of the generated stubs, absolute.
        state: The folder of databases, keys and logs, absolute.
        channel: The implementation of outbound calls: ``"ngh2"`` or ``"grpcio"``.
        broker: URLs of the event broker, with commas between them; ``""``: ``mesh up`` runs one.
        auth: How user tokens are verified, or None.
        edge: The edge, or None.
        events: How the broker is reached, its files absolute, and how much it keeps.
        services: By name.
        lambdas: The Lambda functions among them, by name.
    """

    file: Path
    protos: tuple[Path, ...]
    stubs: Path
    state: Path
    channel: str
    broker: str
    auth: AuthConfig | None
    edge: EdgeConfig | None
    events: EventsConfig
    services: dict[str, ServiceConfig]
    lambdas: dict[str, LambdaFunction] = {}

    @property
    def root(self) -> Path:
        """The folder that relative paths of the manifest are relative to."""
        return self.file.parent

    def host_of(self, service: str) -> str | None:
        """Return the name of the entry that serves a service of the contract, or None."""
        return next((name for name, entry in self.services.items() if service in entry.serves), None)


def load(file: Path, environ: Mapping[str, str] | None = None) -> Manifest:
    """Read mesh.toml and the environment.

    Args:
        file: Path of mesh.toml.
        environ: The environment; None for the process's own.

    Raises:
        Faults: The file is missing, is not TOML, has an unknown key, a wrong type or a value that cannot be right.
    """
    place = file.name
    try:
        tables: Any = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "; say where it is with --file" if isinstance(error, FileNotFoundError) else ""
        raise Faults([Fault(str(file), f"{(error.strerror or str(error)).lower()}{hint}")]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Faults([Fault(place, f"not TOML: {error}")]) from None
    environ = os.environ if environ is None else environ
    overrides = {
        name: value for name, value in environ.items() if name.startswith(PREFIX) and not name.startswith(PRIVATE)
    }
    override(tables, _ManifestFile, ServiceConfig, overrides, PREFIX)
    parsed = _convert(tables, _ManifestFile, place, "", overrides)
    faults = list(_faults(parsed, place))
    root = file.resolve().parent
    services: dict[str, ServiceConfig] = {}
    lambdas: dict[str, LambdaFunction] = {}
    cors = parsed.edge is not None and bool(parsed.edge.cors_rules.origins)
    for name, table in parsed.services.items():
        where = f"{place} [services.{name}]"
        try:
            entry = _convert(table, ServiceConfig, place, f"services.{name}", overrides)
            if entry.lambda_ or entry.events:
                function = lambdas[name] = read(
                    entry, name, root, where, environ, largest=int(entry.max_message), cors=cors
                )
                entry = msgspec.structs.replace(entry, module=function.module, serves=(function.service,))
        except Faults as found:
            faults.extend(found.faults)
        else:
            services[name] = entry
            faults.extend(_service_faults(entry, where))
            faults.extend(() if name in lambdas else stray(entry, where))
    if faults:
        raise Faults([_blamed(fault, place, overrides) for fault in faults])
    services = {name: _located(service, root) for name, service in services.items()}
    # Lambda functions need no contract, so the default folder need not be there for them.
    bare = bool(lambdas) and len(lambdas) == len(services) and "protos" not in tables and not (root / "protos").is_dir()
    return Manifest(
        file=file.resolve(),
        protos=() if bare else tuple((root / path).resolve() for path in parsed.protos),
        stubs=(root / parsed.stubs).resolve(),
        state=(root / parsed.state).resolve(),
        channel=parsed.channel,
        broker=parsed.broker,
        auth=parsed.auth,
        edge=parsed.edge,
        events=_absolute(parsed.events, root),
        services=services,
        lambdas=lambdas,
    )


def _blamed(fault: Fault, place: str, overrides: Mapping[str, str]) -> Fault:
    """Return the fault with the environment variable as its place, if the value came from there."""
    variable = PREFIX + re.sub(r"\W+", "_", fault.place.removeprefix(place)).strip("_").upper()
    return Fault(f"environment variable {variable}", fault.text) if variable in overrides else fault


def _located(service: ServiceConfig, root: Path) -> ServiceConfig:
    """Return the service with the files that its database's URL names made absolute."""
    if not service.database:
        return service
    return msgspec.structs.replace(service, database=located(service.database, root))


def _absolute(events: EventsConfig, root: Path) -> EventsConfig:
    """Return the table with its files made absolute."""
    files = {name: getattr(events, name) for name in _FILES}
    return msgspec.structs.replace(
        events, **{name: str((root / file).resolve()) for name, file in files.items() if file}
    )


def _convert(table: Any, kind: type[TableT], place: str, prefix: str, overrides: Mapping[str, str]) -> TableT:
    """Return the table as its type; ``prefix`` is where it stands in the file (``services.login``)."""

    def hook(kind: type, value: object) -> object:
        return kind.parse(value)  # type: ignore[attr-defined]

    try:
        return msgspec.convert(table, kind, dec_hook=hook)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        inner = re.sub(r"\[\.\.\.\]|\[\d+\]", "", path.rstrip("`").lstrip("."))
        keys = ".".join(part for part in (prefix, inner) if part)
        where = _where(place, keys)
        unknown = re.search(r"unknown field `(.*)`", text)
        if unknown:
            text = f"unknown key {unknown[1]!r}{_near(unknown[1], keys)}"
        if text.startswith("Invalid enum value"):
            text += _choices(inner.rpartition(".")[2])
        missing = re.search(r"missing required field `(.*)`", text)
        if missing:
            text = f"the key {missing[1]!r} is missing"
        if re.match(r"Expected `object( \| null)?`", text):
            example = ", as in workers = { max = 3 }" if inner == "workers" else ""
            text = f"expected a table{example}; {text.partition(', ')[2]}"
        variable = PREFIX + keys.upper().replace(".", "_").replace("-", "_")
        if variable in overrides:
            where = f"environment variable {variable}"
        raise Faults([Fault(where, (text[:1].lower() + text[1:]).replace("`", ""))]) from None


def _where(place: str, keys: str) -> str:
    """Return ``mesh.toml [services.login] listen`` for ``services.login.listen``."""
    parts = [part for part in keys.split(".") if part]
    depth = 2 if parts[:1] == ["services"] else 1
    table = f" [{'.'.join(parts[:depth])}]" if parts else ""
    key = f" {'.'.join(parts[depth:])}" if len(parts) > depth else ""
    return place + table + key


def _choices(key: str) -> str:
    """Return what a key of ``[services.NAME]`` with few values may be."""
    kinds = [field.type for field in msgspec.structs.fields(ServiceConfig) if field.encode_name == key]
    said = [value for kind in kinds for one in get_args(kind) for value in get_args(one) or (one,)]
    return "".join(
        f"{'; expected' if value is said[0] else ' or'} {value!r}" for value in said if isinstance(value, str)
    )


def _near(key: str, path: str) -> str:
    kinds: dict[str, type[msgspec.Struct]] = {
        "": _ManifestFile, "auth": AuthConfig, "edge": EdgeConfig, "edge.cors": CorsConfig, "edge.rate_limit":
        RateLimitConfig, "events": EventsConfig,
    }  # fmt: skip
    inner = WorkersConfig if path.endswith(".workers") else ServiceConfig
    known = (kinds.get(path) or inner).__struct_encode_fields__
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _faults(file: _ManifestFile, place: str) -> Iterator[Fault]:
    if file.channel not in ("ngh2", "grpcio"):
        yield Fault(f"{place} channel", f'expected "ngh2" or "grpcio", got {file.channel!r}')
    if file.edge is not None:
        yield from _address_faults(f"{place} [edge] listen", file.edge.listen)
        yield from _bound_faults(file.edge, f"{place} [edge]", "max_body", "max_uri", "max_headers")
        yield from cors_faults(file.edge.cors_rules, f"{place} [edge] cors")
        yield from metadata_faults(file.edge.metadata, f"{place} [edge] metadata")
        yield from proxy_faults(file.edge.trusted_proxies, f"{place} [edge] trusted_proxies")
    for key, paths in (("protos", file.protos), ("stubs", (file.stubs,)), ("state", (file.state,))):
        for path in paths:
            yield from _path_faults(f"{place} {key}", path)
    for key in _FILES:
        yield from _path_faults(f"{place} [events] {key}", getattr(file.events, key))
    yield from broker_faults(file.broker, f"{place} broker")
    yield from _address_faults(f"{place} [events] listen", file.events.listen)
    yield from events_faults(file.events, f"{place} [events]")
    variables: dict[str, str] = {}
    for name in file.services:
        other = variables.setdefault(name.replace("-", "_"), name)
        if other != name:
            yield Fault(f"{place} [services.{name}]", f"its variables would be those of {other!r}; use another name")
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name in ("broker", "edge"):
            yield Fault(
                f"{place} [services.{name}]",
                "a service's name is lower-case letters, digits, '-' and '_', a letter first, not 'edge' or 'broker'",
            )


def _service_faults(service: ServiceConfig, table: str) -> Iterator[Fault]:
    yield from _address_faults(f"{table} listen", service.listen)
    for text in service.address:
        yield from _target_faults(f"{table} address", text)
    if not service.module:
        yield Fault(table, "the key 'module' is missing")
    if not service.serves:
        yield Fault(f"{table} serves", "name at least one service of the contract")
    yield from _bound_faults(service, table, "max_message")
    if service.database:
        faults = list(database_faults(service.database, f"{table} database"))
        yield from faults
        file = None if faults else parse(service.database).file
        if file is not None:
            yield from _path_faults(f"{table} database", str(file))
    yield from _path_faults(f"{table} migrations", service.migrations)
    if service.workers is not None:
        yield from workers_faults(service.workers, f"{table} workers")


def _bound_faults(entry: EdgeConfig | ServiceConfig, table: str, *sizes: str) -> Iterator[Fault]:
    """Check the bounds that would refuse everything."""
    for name, least in (("concurrency", 1), ("queue", 0), *((name, 1) for name in sizes)):
        value = int(getattr(entry, name))
        if value < least:
            yield Fault(f"{table} {name}", f"must be at least {least}, not {value}")


def _path_faults(place: str, text: str) -> Iterator[Fault]:
    """Check that a file can have the name here: Python encodes names as the locale says."""
    try:
        name = os.fsencode(text)
    except UnicodeEncodeError as error:
        lacking, encoding = error.object[error.start], sys.getfilesystemencoding()
        yield Fault(place, f"this locale's names of files are {encoding}, which has no {lacking!r}; set PYTHONUTF8=1")
    else:
        if b"\0" in name:
            yield Fault(place, f"no path holds a NUL, as {text!r} does")


def _address_faults(place: str, text: str) -> Iterator[Fault]:
    try:
        split(text)
    except ValueError as error:
        yield Fault(place, str(error))


def _target_faults(place: str, text: str) -> Iterator[Fault]:
    """Check an address that others connect to."""
    faults = list(_address_faults(place, text))
    yield from faults
    if faults:
        return
    host, port = split(text)
    if host == ANY:
        yield Fault(place, f"{text!r} can be listened at and not be connected to; name a host")
    elif not port:
        yield Fault(place, f"{text!r} can be listened at and not be connected to; name the port")
