"""Manifest: the tables of mesh.toml as frozen values, with the overrides of the environment.

``MESH_SERVICES_LOGIN_DATABASE`` overrides ``services.login.database``. The text of a variable is parsed as TOML if the
type needs it (``true``, ``["a", "b"]``); a list may also be ``a,b``. OpenTelemetry reads its own ``OTEL_*`` variables.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mesh.config import secrets
from mesh.config.auth import AuthConfig, auth_faults
from mesh.config.checks import address_faults, path_faults, target_faults
from mesh.config.conversion import PREFIX, consequence, convert, place_of
from mesh.config.edge import TLS_FILES, CorsConfig, EdgeConfig, RateLimitConfig, edge_faults
from mesh.config.environment import override
from mesh.config.events import EventsConfig, broker_faults, events_faults
from mesh.config.lambda_function import LambdaFunction, stray
from mesh.config.lambda_function import read as read_function
from mesh.config.secret_store import SecretStore
from mesh.config.service import ServiceConfig, service_faults
from mesh.config.tls import KeysConfig, TlsFiles, TlsMode, keys_faults, local, name_faults, secured, tls_faults
from mesh.config.toml_lines import syntax_fault
from mesh.config.values import Duration, Rate, Size, TimeLimit
from mesh.config.workers import WorkersConfig
from mesh.database_url import located
from mesh.faults import Fault, Faults

__all__ = [
    "AuthConfig", "CorsConfig", "Duration", "EdgeConfig", "EventsConfig", "KeysConfig", "Manifest", "ManifestFile",
    "Rate", "RateLimitConfig", "ServiceConfig", "Size", "TlsFiles", "WorkersConfig", "load", "read",
]  # fmt: skip

INTERNAL_PREFIX = "MESH_INTERNAL_"
"""Prefix of variables that ``mesh up`` sets for its child processes. They are no values of mesh.toml."""
RESERVED = frozenset({"broker", "edge", "keys", "operator"})
"""Names of a mesh's own components and of its operator. A service has none of them."""
_MIN_LIVENESS_TIMEOUT = 1.0
"""Seconds. A shorter pause of an event loop is usual on a busy machine."""
SECRETS_FOLDER = "/run/secrets"
"""Folder with a file for each secret, where Docker and Kubernetes mount them."""
_FILES = ("credentials", "nkey", "ca", "certificate", "private_key")
"""Keys of ``[events]`` whose values are paths of files."""


TableT = TypeVar("TableT", bound=msgspec.Struct)


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table of mesh.toml that refuses unknown keys."""


class ManifestFile(_Table, frozen=True):
    """Top level of mesh.toml, as it is written.

    Attributes:
        name: Name of the mesh: the trust domain of its certificates (``spiffe://NAME/SERVICE``).
        tls: Encryption between services. ``"auto"`` encrypts a service whose ``listen`` or ``address`` is not loopback,
            ``"on"`` all, ``"off"`` none. A table names own files.
        protos: Import roots of the contract, relative to this file.
        stubs: Folder of the generated stubs.
        state: Folder of the state: identity keys, addresses of the running mesh, broker data.
        channel: Implementation of outbound calls: ``"ngh2"`` (libnghttp2) or ``"grpcio"``.
        liveness: Time without a response of an event loop after which its process is restarted; ``"none"``: never.
        secrets: Folder with a file for each secret.
        broker: URLs of the event broker, separated by commas; ``""``: ``mesh up`` runs a broker.
        auth: Verification of user tokens. Without the table no token is accepted.
        edge: The HTTP listener. Without the table the mesh has no edge.
        events: Connection to the event broker, and its retention.
        keys: Signer of certificates.
        services: Services by name.
    """

    name: str = "mesh"
    tls: TlsMode | TlsFiles = "auto"
    protos: tuple[str, ...] = ("protos",)
    stubs: str = "gen"
    state: str = ".mesh"
    channel: str = "ngh2"
    liveness: TimeLimit = TimeLimit(10)
    secrets: str = SECRETS_FOLDER
    broker: str = ""
    auth: AuthConfig | None = None
    edge: EdgeConfig | None = None
    events: EventsConfig = EventsConfig()
    keys: KeysConfig = KeysConfig()
    services: dict[str, dict[str, Any]] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Complete configuration of a mesh, from mesh.toml and the environment.

    Attributes:
        file: Path of mesh.toml.
        name: Name of the mesh: the trust domain of its certificates (``spiffe://NAME/SERVICE``).
        tls: Encryption between services: ``"auto"``, ``"on"``, ``"off"``, or own files with absolute paths.
        protos: Import roots, absolute.
        stubs: Folder of the generated stubs, absolute.
        state: Folder of databases, keys and logs, absolute.
        channel: Implementation of outbound calls: ``"ngh2"`` or ``"grpcio"``.
        liveness: Time without a response of an event loop after which its process is restarted.
        broker: URLs of the event broker, separated by commas; ``""``: ``mesh up`` runs a broker.
        auth: Verification of user tokens, or None.
        edge: The edge, or None.
        events: Connection to the broker, with absolute paths, and its retention.
        keys: Signer of certificates.
        services: Services by name.
        lambdas: The Lambda functions among them, by name.
        secret_names: Names of the secrets of each owner: a service, ``edge``, or "" for the rest.
        secret_sources: Where secrets are looked up.
    """

    file: Path
    name: str
    tls: TlsMode | TlsFiles
    protos: tuple[Path, ...]
    stubs: Path
    state: Path
    channel: str
    liveness: TimeLimit
    broker: str
    auth: AuthConfig | None
    edge: EdgeConfig | None
    events: EventsConfig
    keys: KeysConfig
    services: dict[str, ServiceConfig]
    lambdas: dict[str, LambdaFunction] = {}
    secret_names: dict[str, frozenset[str]] = {}
    secret_sources: secrets.SecretSources

    @property
    def root(self) -> Path:
        """Folder that paths in mesh.toml are relative to."""
        return self.file.parent

    def host_of(self, service: str) -> str | None:
        """Return the name of the service of mesh.toml that hosts a gRPC service, or None."""
        return next((name for name, config in self.services.items() if service in config.serves), None)

    def migrations_folder(self, service: str) -> Path:
        """Return the folder of the migrations of a service of mesh.toml; it need not exist."""
        config = self.services[service]
        if config.migrations:
            return Path(os.path.normpath(self.root / config.migrations))
        module = self.root.joinpath(*config.module.split("."))
        return (module if module.is_dir() else module.parent) / "migrations"

    def secures(self, service: str) -> bool:
        """Return whether a service of mesh.toml is reached by TLS.

        ``tls = "auto"`` encrypts a service unless its ``listen`` and all addresses for its clients are of the loopback
        interface.
        """
        config = self.services[service]
        return secured(self.tls, (config.listen, *config.addresses))

    def plain_text(self) -> list[str]:
        """Return the services that are reached without TLS beyond this machine, since ``tls`` is ``"off"``."""
        if self.tls != "off":
            return []
        return [
            name for name, config in self.services.items() if not all(map(local, (config.listen, *config.addresses)))
        ]


def no_secrets(owner: str) -> bool:  # noqa: ARG001 - see ``load``
    """Return False: a command that needs no secrets looks up none."""
    return False


def load(
    file: Path, environ: Mapping[str, str] | None = None, *, secrets_of: Callable[[str], bool] = no_secrets
) -> Manifest:
    """Read mesh.toml and the environment.

    Args:
        file: Path of mesh.toml.
        environ: The environment; None: that of the process.
        secrets_of: Whether to look up the secrets of an owner (``mesh.config.secrets.resolve``). A secret that is not
            looked up has a valid value in its place.

    Raises:
        Faults: The file is missing or not TOML, or has unknown keys, wrong types or invalid values.
    """
    found, faults = read(file, environ, secrets_of=secrets_of)
    if faults or found is None:
        raise Faults(faults)
    return found


def read(
    file: Path, environ: Mapping[str, str] | None = None, *, secrets_of: Callable[[str], bool] = no_secrets
) -> tuple[Manifest | None, list[Fault]]:
    """Read mesh.toml and the environment, and return all faults and what is right.

    A wrong value has its default in the manifest. The manifest is None if the file cannot be read as a whole.

    Args:
        file: As for ``load``.
        environ: As for ``load``.
        secrets_of: As for ``load``.
    """
    place = file.name
    tables, syntax = _tables(file)
    if syntax:
        return None, syntax
    environ = os.environ if environ is None else environ
    overrides = {
        name: value
        for name, value in environ.items()
        if name.startswith(PREFIX) and not name.startswith(INTERNAL_PREFIX) and not secrets.is_variable(name)
    }
    faults: list[Fault] = []
    try:
        override(tables, ManifestFile, ServiceConfig, overrides, PREFIX)
    except Faults as found:  # a variable that names no key is no part of any table
        return None, list(found.faults)
    root = file.resolve().parent
    folder, state = tables.get("secrets", SECRETS_FOLDER), tables.get("state", ".mesh")  # not checked yet
    sources = secrets.SecretSources(environ, root / str(folder), SecretStore(root / str(state), environ))
    secret_names, unresolved = secrets.resolve(tables, sources, secrets_of)
    if unresolved:
        faults += [_blamed(Fault(place_of(place, keys), text), place, overrides) for keys, text in unresolved]
        return None, faults
    faults += _remove_non_tables(tables, place)
    parsed, found_faults = convert(tables, ManifestFile, place, "", overrides)
    faults += found_faults
    if parsed is None:
        return None, faults
    faults += [fault for fault in _faults(parsed, place) if not consequence(fault, faults)]
    services, lambdas, service_faults_ = _services(parsed, place, root, environ, overrides)
    faults += service_faults_
    faults = [_blamed(fault, place, overrides) for fault in faults]
    # Lambda functions need no contract, so the default folder may be missing.
    bare = bool(lambdas) and len(lambdas) == len(services) and "protos" not in tables and not (root / "protos").is_dir()
    try:
        manifest = Manifest(
            file=file.resolve(),
            name=parsed.name,
            tls=_absolute_tls(parsed.tls, root),
            protos=() if bare else tuple((root / path).resolve() for path in parsed.protos),
            stubs=(root / parsed.stubs).resolve(),
            state=(root / parsed.state).resolve(),
            channel=parsed.channel,
            liveness=parsed.liveness,
            broker=parsed.broker,
            auth=parsed.auth,
            edge=_absolute_edge(parsed.edge, root),
            events=_absolute(parsed.events, root),
            keys=parsed.keys,
            services={name: _located(service, root) for name, service in services.items()},
            lambdas=lambdas,
            secret_names=secret_names,
            secret_sources=sources,
        )
    except ValueError:  # a path or a URL, which is a fault
        if not faults:
            raise
        return None, faults
    return manifest, faults


def _tables(file: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Return the tables of the file, or the fault that it is none."""
    text = ""
    try:
        data = file.read_bytes()
        text = data.decode(errors="replace")
        return tomllib.loads(data.decode()), []
    except OSError as error:
        hint = "; name its path with --file" if isinstance(error, FileNotFoundError) else ""
        return {}, [Fault(str(file), f"{(error.strerror or str(error)).lower()}{hint}")]
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return {}, [Fault(f"{file.name}:{line}", f"not TOML: {error}")]
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return {}, [syntax_fault(file.name, text, error)]


def _remove_non_tables(tables: dict[str, Any], place: str) -> Iterator[Fault]:
    """Yield a fault for each service that is no table, and remove it: msgspec would not say which one it is."""
    services = tables.get("services")
    if isinstance(services, dict):
        for name in [name for name, table in services.items() if not isinstance(table, dict)]:
            got = type(services.pop(name)).__name__
            yield Fault(f"{place} [services.{name}]", f"expected a table, got {got}")


def _services(
    parsed: ManifestFile, place: str, root: Path, environ: Mapping[str, str], overrides: Mapping[str, str]
) -> tuple[dict[str, ServiceConfig], dict[str, LambdaFunction], list[Fault]]:
    """Return the services, the Lambda functions among them, and the faults of both."""
    faults: list[Fault] = []
    services: dict[str, ServiceConfig] = {}
    lambdas: dict[str, LambdaFunction] = {}
    cors = parsed.edge is not None and bool(parsed.edge.cors_rules.origins)
    for name, table in parsed.services.items():
        where = f"{place} [services.{name}]"
        config, found = convert(table, ServiceConfig, place, f"services.{name}", overrides)
        faults += found
        if config is None:
            continue
        if config.lambda_ or config.events:
            try:
                function = lambdas[name] = read_function(
                    config, name, root, where, environ, max_message_bytes=int(config.max_message), cors=cors
                )
            except Faults as refused:
                faults += refused.faults
                continue
            config = msgspec.structs.replace(config, module=function.module, serves=(function.service,))
        services[name] = config
        more = [*service_faults(config, where), *(() if name in lambdas else stray(config, where))]
        faults += [fault for fault in more if not consequence(fault, found)]
    return services, lambdas, faults


def _blamed(fault: Fault, place: str, overrides: Mapping[str, str]) -> Fault:
    """Return the fault with the environment variable as its place, if the value came from one."""
    variable = PREFIX + re.sub(r"\W+", "_", fault.place.removeprefix(place)).strip("_").upper()
    return Fault(f"environment variable {variable}", fault.text) if variable in overrides else fault


def _located(service: ServiceConfig, root: Path) -> ServiceConfig:
    """Return the service with absolute paths in the URL of its database."""
    if not service.database:
        return service
    return msgspec.structs.replace(service, database=located(service.database, root))


def _absolute(events: EventsConfig, root: Path) -> EventsConfig:
    """Return the table with absolute paths."""
    files = {name: getattr(events, name) for name in _FILES}
    return msgspec.structs.replace(
        events, **{name: str((root / file).resolve()) for name, file in files.items() if file}
    )


def _absolute_edge(edge: EdgeConfig | None, root: Path) -> EdgeConfig | None:
    """Return the table with absolute paths."""
    if edge is None or edge.tls is None:
        return edge
    paths = {name: getattr(edge.tls, name) for name in TLS_FILES}
    located = {name: str((root / path).resolve()) for name, path in paths.items() if path}
    return msgspec.structs.replace(edge, tls=msgspec.structs.replace(edge.tls, **located))


def _absolute_tls(tls: TlsMode | TlsFiles, root: Path) -> TlsMode | TlsFiles:
    """Return ``tls`` with absolute paths."""
    if not isinstance(tls, TlsFiles):
        return tls
    return msgspec.structs.replace(
        tls, **{name: str((root / getattr(tls, name)).resolve()) for name in TlsFiles.__struct_fields__}
    )


def _faults(file: ManifestFile, place: str) -> Iterator[Fault]:
    if file.channel not in ("ngh2", "grpcio"):
        yield Fault(f"{place} channel", f'expected "ngh2" or "grpcio", got {file.channel!r}')
    yield from _security_faults(file, place)
    if file.liveness < _MIN_LIVENESS_TIMEOUT:
        yield Fault(f"{place} liveness", f'must be at least "{_MIN_LIVENESS_TIMEOUT:g}s", or "none"')
    if file.edge is not None:
        yield from edge_faults(file.edge, f"{place} [edge]")
    folders = {"protos": file.protos, "stubs": (file.stubs,), "state": (file.state,), "secrets": (file.secrets,)}
    for key, paths in folders.items():
        for path in paths:
            yield from path_faults(f"{place} {key}", path)
    for key in _FILES:
        yield from path_faults(f"{place} [events] {key}", getattr(file.events, key))
    yield from broker_faults(file.broker, f"{place} broker")
    yield from address_faults(f"{place} [events] listen", file.events.listen)
    yield from events_faults(file.events, f"{place} [events]", {*file.services, *RESERVED})
    variables: dict[str, str] = {}
    for name in file.services:
        other = variables.setdefault(name.replace("-", "_"), name)
        if other != name:
            yield Fault(
                f"{place} [services.{name}]", f"its environment variables would be those of {other!r}; use another name"
            )
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name in RESERVED:
            yield Fault(
                f"{place} [services.{name}]",
                "a service's name is lower-case letters, digits, '-' and '_', a letter first, "
                f"not {' or '.join(map(repr, sorted(RESERVED)))}",
            )


def _security_faults(file: ManifestFile, place: str) -> Iterator[Fault]:
    if file.auth is not None:
        yield from auth_faults(file.auth, place)
    yield from name_faults(file.name, f"{place} name")
    yield from tls_faults(file.tls, f"{place} [tls]")
    yield from keys_faults(file.keys, f"{place} [keys]")
    yield from address_faults(f"{place} [keys] listen", file.keys.listen)
    if file.keys.address:
        yield from target_faults(f"{place} [keys] address", file.keys.address)
    if isinstance(file.tls, TlsFiles):
        for key in TlsFiles.__struct_fields__:
            yield from path_faults(f"{place} [tls] {key}", getattr(file.tls, key))
