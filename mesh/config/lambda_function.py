"""What mesh.toml says of a Lambda function: its keys, and the frozen ``Function`` that they mean.

The documents that the keys name are read here, when the manifest is; ``mesh.config.api_document`` understands them.
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

from mesh.config.api_document import DocumentError, HttpRoute, Overrides, of_openapi
from mesh.config.lambda_events import handler_of, of_events
from mesh.config.values import Duration, Size
from mesh.contract import cron
from mesh.faults import Fault, Faults

__all__ = ["PACKAGE", "LambdaConfig", "LambdaFunction", "read", "stray"]

PACKAGE = "functions.v1"
"""The package of the services that are made for functions."""

_HANDLER = re.compile(r"(?P<module>[\w-]+(?:\.[\w-]+)*):(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\Z")
"""A module is imported by its name as a text, so a folder may be called ``get-user``, as on AWS."""
_OF_AWS = re.compile(r"(?:\./)?(?P<file>[\w-]+(?:[./][\w-]+)*)\.(?P<name>[A-Za-z_]\w*)\Z")
"""``folder/file.function`` or ``folder.file.function``."""
_VARIABLE = re.compile(r"[A-Za-z_]\w*\Z")
_LONGEST = 900.0
"""Seconds: what AWS allows a function to take."""


class LambdaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of ``[services.NAME]`` that make it a Lambda function.

    Attributes:
        lambda_: ``lambda``: the handler, ``module:function``, or ``folder/file.function`` as on AWS, relative to
            mesh.toml; with ``events``, the handler of the configuration will do.
        openapi: A Swagger 2.0 or OpenAPI 3 document (JSON), relative to mesh.toml: the routes that reach it.
        events: A function configuration (JSON), relative to mesh.toml: ``{"config": {"handler": …}, "events": [{"http":
            {"method": …, "path": …}}]}``.
        integration: ``"proxy"``: the handler gets API Gateway's event; ``"event"``: the JSON body with the parameters
            of path and query is the event; if nothing is said, what the document says of each route, or ``"proxy"``.
        payload: The format of API Gateway's event; if nothing is said, what the document says of each route: 1.0 for a
            REST API, for an HTTP API its own.
        access: Who may call it; ``"public"`` if nothing is said.
        roles: If not empty, a user must hold one of them.
        timeout: The longest that one invocation may take.
        memory: What its context and its environment say that it has.
        environment: Environment variables that are set before its module is imported.
        schedule: When it is invoked by itself, as in the contract's ``on.schedule``.
        subscribes: Full names of the events that invoke it.
    """

    lambda_: str = msgspec.field(default="", name="lambda")
    openapi: str = ""
    events: str = ""
    integration: Literal["proxy", "event"] | None = None
    payload: Literal["1.0", "2.0"] | None = None
    access: Literal["public", "authenticated", "internal"] | None = None
    roles: tuple[str, ...] = ()
    timeout: Duration = Duration(3)
    memory: Size = Size(128 * 10**6)
    environment: dict[str, str] = {}
    schedule: str = ""
    subscribes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LambdaFunction:
    """One Lambda function.

    Attributes:
        name: Its entry in mesh.toml.
        module: The Python module of the handler.
        handler: The handler's name in it.
        routes: HTTP routes, each with the event that it gives.
        access: ``"public"``, ``"authenticated"`` or ``"internal"``.
        roles: If not empty, a user must hold one of them.
        timeout: Seconds.
        memory: Megabytes.
        environment: Environment variables.
        schedule: When it is invoked by itself, or ``""``.
        subscribes: Full names of the events that invoke it.
        region: The AWS region that it believes to be in.
        document: The file that its routes stand in, or None.
        largest: Bytes of its largest event and of its largest result.
    """

    name: str
    module: str
    handler: str
    routes: tuple[HttpRoute, ...] = ()
    access: str = "public"
    roles: tuple[str, ...] = ()
    timeout: float = 3.0
    memory: int = 128
    environment: tuple[tuple[str, str], ...] = ()
    schedule: str = ""
    subscribes: tuple[str, ...] = ()
    region: str = "us-east-1"
    document: Path | None = None
    largest: int = 4 * 2**20

    @property
    def title(self) -> str:
        """``Hello`` for ``hello``, ``SignUp`` for ``sign-up``."""
        return "".join(word[:1].upper() + word[1:] for word in re.split(r"[-_]+", self.name))

    @property
    def service(self) -> str:
        """The full name of its service in the contract."""
        return f"{PACKAGE}.{self.title}"

    @property
    def proto(self) -> str:
        """The name of its file in the contract: ``functions/v1/sign_up.proto``."""
        return f"{PACKAGE.replace('.', '/')}/{self.name.replace('-', '_')}.proto"


def stray(keys: LambdaConfig, table: str) -> Iterator[Fault]:
    """Yield a fault for each key that means nothing in an entry that is no Lambda function."""
    for field in msgspec.structs.fields(LambdaConfig):
        default = {} if field.name == "environment" else field.default
        if getattr(keys, field.name) != default:
            yield Fault(f"{table} {field.encode_name}", 'this is for Lambda functions: say lambda = "module:handler"')


def read(
    keys: LambdaConfig, name: str, root: Path, table: str, environ: Mapping[str, str], *, largest: int, cors: bool
) -> LambdaFunction:
    """Return the function that an entry says.

    Args:
        keys: Its keys.
        name: Its name.
        root: The folder of mesh.toml.
        table: ``mesh.toml [services.hello]``.
        environ: The environment, for the AWS region.
        largest: Bytes of its largest result.
        cors: The edge answers web pages of other origins.

    Raises:
        Faults: A document cannot be read or understood; values that cannot be meant together.
    """
    faults = list(_faults(keys, table))
    routes: tuple[HttpRoute, ...] = ()
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
            _, routes = _document(root / keys.openapi, f"{table} openapi", of_openapi, overrides)
        elif keys.events:
            document, routes = _document(root / keys.events, f"{table} events", of_events, overrides)
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
        timeout=float(keys.timeout),
        memory=_megabytes(int(keys.memory)),
        environment=tuple(sorted(keys.environment.items())),
        schedule=keys.schedule,
        subscribes=keys.subscribes,
        region=_region({**environ, **keys.environment}),
        document=Path(os.path.normpath(root / said)) if (said := keys.openapi or keys.events) else None,
        largest=largest,
    )


def _faults(keys: LambdaConfig, table: str) -> Iterator[Fault]:
    if keys.openapi and keys.events:
        yield Fault(f"{table} events", "the routes stand in openapi already; say one of them")
    if not 0 < keys.timeout <= _LONGEST:
        yield Fault(f"{table} timeout", f"must be more than 0 and at most {_LONGEST:g}s, not {keys.timeout:g}s")
    if keys.access == "internal" and (keys.openapi or keys.events):
        yield Fault(f"{table} access", "an internal function is never reached through the edge; leave its routes out")
    if keys.roles and keys.access != "authenticated":
        yield Fault(f"{table} roles", 'roles narrow access = "authenticated"')
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
    """Return the number that its author wrote: ``"256MB"`` and ``"256MiB"`` are both AWS's 256."""
    return size // 10**6 if size % 10**6 == 0 else size // 2**20


def _document(
    path: Path, place: str, routes_of: Callable[[Any, Overrides], tuple[HttpRoute, ...]], overrides: Overrides
) -> tuple[Any, tuple[HttpRoute, ...]]:
    try:
        document = json.loads(path.read_bytes())
        return document, routes_of(document, overrides)
    except OSError as error:
        raise Faults([Fault(place, f"{path}: {(error.strerror or str(error)).lower()}")]) from None
    except DocumentError as error:
        raise Faults([Fault(place, f"{path}: {text}") for text in error.args]) from None
    except ValueError as error:
        hint = "; convert it from YAML" if path.suffix.lower() in (".yaml", ".yml") else ""
        raise Faults([Fault(place, f"{path}: not JSON: {error}{hint}")]) from None


def _of_document(document: Any, file: Path, root: Path) -> str:
    """Return the handler of a function configuration; AWS's form is relative to the document's folder, ``CodeUri``."""
    handler, code = handler_of(document)
    try:
        folder = Path(os.path.normpath(file.parent.resolve() / code)).relative_to(root).parts
    except ValueError:  # outside the project
        return handler
    return _dotted(handler, folder)


def _dotted(handler: str, folder: tuple[str, ...]) -> str:
    """Return a handler in AWS's form as ``module:handler``, any other as it is.

    Args:
        handler: ``src/app.handler`` or ``src.app.handler``.
        folder: What it is relative to, from the folder of mesh.toml.
    """
    match = _OF_AWS.match(handler)
    if match is None:
        return handler
    return f"{'.'.join((*folder, *match['file'].split('/')))}:{match['name']}"
