"""Lambda functions of mesh.toml: their keys, and the frozen ``LambdaFunction`` with its routes.

This module reads the documents that the keys name, together with the manifest. ``mesh.config.api_document`` and
``mesh.config.lambda_events`` parse them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from mesh.config import api_operations
from mesh.config.api_document import DocumentError, HttpRoute, Overrides, of_openapi
from mesh.config.lambda_events import handler_of, of_events
from mesh.config.values import Duration, Size
from mesh.contract import cron
from mesh.faults import Fault, Faults

__all__ = ["PACKAGE", "LambdaConfig", "LambdaFunction", "read", "stray"]

PACKAGE = "functions.v1"
"""Proto package of the services that the mesh generates for Lambda functions."""

_HANDLER = re.compile(r"(?P<module>[\w-]+(?:\.[\w-]+)*):(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\Z")
"""Modules are imported by name, so a folder may have a name such as ``get-user``, as on AWS."""
_AWS_HANDLER = re.compile(r"(?:\./)?(?P<file>[\w-]+(?:[./][\w-]+)*)\.(?P<name>[A-Za-z_]\w*)\Z")
"""``folder/file.function`` or ``folder.file.function``."""
_VARIABLE = re.compile(r"[A-Za-z_]\w*\Z")
_MAX_TIMEOUT = 900.0
"""Seconds, as on AWS."""


class LambdaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Keys of ``[services.NAME]`` for a Lambda function.

    Attributes:
        lambda_: ``lambda``: the handler as ``module:function``, or ``folder/file.function`` as on AWS, relative to
            mesh.toml. With ``events`` it is optional, if the configuration names a handler.
        openapi: Swagger 2.0 or OpenAPI 3 document (JSON) with the routes, relative to mesh.toml.
        events: Function configuration (JSON), relative to mesh.toml: ``{"config": {"handler": …}, "events": [{"http":
            {"method": …, "path": …}}]}``.
        integration: ``"proxy"``: the handler gets API Gateway's event. ``"event"``: the event is the JSON body with the
            parameters of path and query. Default: that of the document for each route, or ``"proxy"``.
        payload: Format of API Gateway's event. Default: that of the document for each route. A REST API has 1.0.
        access: Access level; ``"public"`` by default.
        roles: If not empty, a user must have one of them.
        scopes: Scopes that an API key must have, all of them.
        timeout: Timeout of an invocation.
        memory: Memory size that the context and the environment report.
        environment: Environment variables, set before the module is imported.
        schedule: Schedule of invocations, as in the contract's ``on.schedule``.
        subscribes: Full names of the events that invoke the function.
    """

    lambda_: str = msgspec.field(default="", name="lambda")
    openapi: str = ""
    events: str = ""
    integration: Literal["proxy", "event"] | None = None
    payload: Literal["1.0", "2.0"] | None = None
    access: Literal["public", "authenticated", "internal", "key"] | None = None
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    timeout: Duration = Duration(3)
    memory: Size = Size(128 * 10**6)
    environment: dict[str, str] = {}
    schedule: str = ""
    subscribes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LambdaFunction:
    """Deployed Lambda function.

    Attributes:
        name: Name of the service in mesh.toml.
        module: Python module of the handler.
        handler: Name of the handler in the module.
        routes: HTTP routes with their event formats.
        access: ``"public"``, ``"authenticated"``, ``"internal"`` or ``"key"``.
        roles: If not empty, a user must have one of them.
        scopes: Scopes that an API key must have, all of them.
        timeout: Timeout of an invocation, seconds.
        memory: Reported memory size, megabytes.
        environment: Environment variables.
        schedule: Schedule of invocations, or ``""``.
        subscribes: Full names of the events that invoke the function.
        region: Reported AWS region.
        document: File with the routes, or None.
        operations: What the ``openapi`` document says of the routes, as JSON (``mesh.config.api_operations.describe``),
            or ``""``.
        max_message_bytes: Size limit of an event and of a result.
    """

    name: str
    module: str
    handler: str
    routes: tuple[HttpRoute, ...] = ()
    access: str = "public"
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    timeout: float = 3.0
    memory: int = 128
    environment: tuple[tuple[str, str], ...] = ()
    schedule: str = ""
    subscribes: tuple[str, ...] = ()
    region: str = "us-east-1"
    document: Path | None = None
    operations: str = ""
    max_message_bytes: int = 4 * 2**20

    @property
    def title(self) -> str:
        """``Hello`` for ``hello``, ``SignUp`` for ``sign-up``."""
        return _title(self.name)

    @property
    def service(self) -> str:
        """Full name of the generated service in the contract."""
        return f"{PACKAGE}.{self.title}"

    @property
    def proto(self) -> str:
        """Name of the generated file in the contract: ``functions/v1/sign_up.proto``."""
        return f"{PACKAGE.replace('.', '/')}/{self.name.replace('-', '_')}.proto"


def _title(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[-_]+", name))


def stray(keys: LambdaConfig, table: str) -> Iterator[Fault]:
    """Yield a fault for each key of Lambda functions in a service that is none."""
    for field in msgspec.structs.fields(LambdaConfig):
        default = {} if field.name == "environment" else field.default
        if getattr(keys, field.name) != default:
            yield Fault(
                f"{table} {field.encode_name}", 'this key is for Lambda functions: set lambda = "module:handler"'
            )


def read(
    keys: LambdaConfig,
    name: str,
    root: Path,
    table: str,
    environ: Mapping[str, str],
    *,
    max_message_bytes: int,
    cors: bool,
) -> LambdaFunction:
    """Return the Lambda function of a service.

    Args:
        keys: Keys of the service.
        name: Name of the service.
        root: Folder of mesh.toml.
        table: ``mesh.toml [services.hello]``, for faults.
        environ: The environment, for the AWS region.
        max_message_bytes: Size limit of a result.
        cors: Whether the edge has CORS origins.

    Raises:
        Faults: A document cannot be read or parsed, or values exclude each other.
    """
    faults = list(_faults(keys, table))
    routes: tuple[HttpRoute, ...] = ()
    operations = ""
    handler = _dotted(keys.lambda_, ())
    overrides = Overrides(
        integration=keys.integration,
        payload=keys.payload,
        access=keys.access is not None,
        cors=cors,
        schedule=bool(keys.schedule),
        subscribes=bool(keys.subscribes),
    )
    try:
        if keys.openapi:
            described, routes = _document(root / keys.openapi, f"{table} openapi", _described(name), overrides)
            operations = json.dumps(described)
        elif keys.events:
            document, routes = _document(root / keys.events, f"{table} events", _events, overrides)
            handler = handler or _of_document(document, root / keys.events, root)
    except Faults as found:
        faults += found.faults
    match = _HANDLER.match(handler)
    if match is None and not (faults and not handler):
        text = (
            "expected module:handler, such as services.hello.handler:lambda_handler, or folder/file.handler as on AWS, "
            f"got {handler!r}"
        )
        faults.append(Fault(f"{table} lambda", text))
    if faults or match is None:
        raise Faults(faults)
    return LambdaFunction(
        name=name,
        module=match["module"],
        handler=match["name"],
        routes=routes,
        access=keys.access or "public",
        roles=keys.roles,
        scopes=keys.scopes,
        timeout=float(keys.timeout),
        memory=_megabytes(int(keys.memory)),
        environment=tuple(sorted(keys.environment.items())),
        schedule=keys.schedule,
        subscribes=keys.subscribes,
        region=_region({**environ, **keys.environment}),
        document=Path(os.path.normpath(root / file)) if (file := keys.openapi or keys.events) else None,
        operations=operations,
        max_message_bytes=max_message_bytes,
    )


def _faults(keys: LambdaConfig, table: str) -> Iterator[Fault]:
    if keys.openapi and keys.events:
        yield Fault(f"{table} events", "openapi has the routes already; set one of the two")
    if not 0 < keys.timeout <= _MAX_TIMEOUT:
        yield Fault(f"{table} timeout", f"must be more than 0 and at most {_MAX_TIMEOUT:g}s, not {keys.timeout:g}s")
    if keys.access == "internal" and (keys.openapi or keys.events):
        yield Fault(f"{table} access", "the edge never routes to an internal function; remove its routes")
    if keys.roles and keys.access != "authenticated":
        yield Fault(f"{table} roles", 'roles narrow access = "authenticated"')
    if keys.scopes and keys.access != "key":
        yield Fault(f"{table} scopes", 'scopes are those of API keys: set access = "key"')
    if keys.schedule:
        try:
            cron.check(keys.schedule)
        except cron.ScheduleError as error:
            yield Fault(f"{table} schedule", str(error))
    for variable in keys.environment:
        if not _VARIABLE.match(variable):
            yield Fault(f"{table} environment", f"{variable!r} is no name of an environment variable")


def _region(environ: Mapping[str, str]) -> str:
    return environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _megabytes(size: int) -> int:
    """Return megabytes as written: ``"256MB"`` and ``"256MiB"`` are both AWS's 256."""
    return size // 10**6 if size % 10**6 == 0 else size // 2**20


Parse = Callable[[Any, Overrides], tuple[Any, tuple[HttpRoute, ...]]]
"""Document → what is kept of it, and its routes."""


def _described(name: str) -> Parse:
    """Return the parser of the ``openapi`` document of a service."""

    def parse(document: Any, overrides: Overrides) -> tuple[Any, tuple[HttpRoute, ...]]:
        routes = of_openapi(document, overrides)
        return api_operations.describe(document, routes, f"{PACKAGE}.{_title(name)}"), routes

    return parse


def _events(document: Any, overrides: Overrides) -> tuple[Any, tuple[HttpRoute, ...]]:
    return document, of_events(document, overrides)


def _document(path: Path, place: str, parse: Parse, overrides: Overrides) -> tuple[Any, tuple[HttpRoute, ...]]:
    try:
        return parse(json.loads(path.read_bytes(), parse_constant=_no_constant), overrides)
    except OSError as error:
        raise Faults([Fault(place, f"{path}: {(error.strerror or str(error)).lower()}")]) from None
    except DocumentError as error:
        raise Faults([Fault(place, f"{path}: {text}") for text in error.args]) from None
    except RecursionError:
        raise Faults([Fault(place, f"{path}: its JSON is nested too deeply")]) from None
    except ValueError as error:
        hint = "; convert it from YAML" if path.suffix.lower() in (".yaml", ".yml") else ""
        raise Faults([Fault(place, f"{path}: not JSON: {error}{hint}")]) from None


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON value")


def _of_document(document: Any, file: Path, root: Path) -> str:
    """Return the handler of a function configuration. A handler in AWS's form is relative to ``CodeUri``."""
    handler, code = handler_of(document)
    try:
        folder = Path(os.path.normpath(file.parent.resolve() / code)).relative_to(root).parts
    except ValueError:  # outside the project
        return handler
    return _dotted(handler, folder)


def _dotted(handler: str, folder: tuple[str, ...]) -> str:
    """Return a handler of AWS's form as ``module:handler``, and any other text unchanged.

    Args:
        handler: ``src/app.handler`` or ``src.app.handler``.
        folder: Folder of the handler, relative to the folder of mesh.toml.
    """
    match = _AWS_HANDLER.match(handler)
    if match is None:
        return handler
    return f"{'.'.join((*folder, *match['file'].split('/')))}:{match['name']}"
