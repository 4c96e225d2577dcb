"""Command line of ``mesh``. A command imports its modules when it runs, so ``--help`` loads nothing heavy."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mesh.chaos import arguments as chaos_command
from mesh.control.commands import apikey_arguments, events_arguments, keys_arguments, secret_arguments
from mesh.faults import Fault, Faults
from mesh.telemetry import otel_environment
from mesh.text import prepare_output

if TYPE_CHECKING:
    from mesh.config.manifest import Manifest
    from mesh.contract.model import Contract

__all__ = ["main"]

FILE = "mesh.toml"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
FAILED = 1
"""Exit code for faults of the project or of the arguments."""
_FD = "descriptor of a listening socket to serve instead of `listen`"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, 1 (faults), 2 (wrong usage), 64 + N (gRPC status N of `mesh call`)."""
    _restore_sigchld()
    prepare_output()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # a failure at the end of the interpreter could not be reported
    except BrokenPipeError:  # `mesh graph | head`
        _discard_output()
        return FAILED
    except OSError as error:
        if error.errno in (*_FULL, *_DENIED) and error.filename is not None:
            place = os.fsdecode(error.filename)
        elif error.errno in _FULL:  # the error names no file
            _discard_output()
            place = "standard output, or a file of the mesh, cannot be written"
        else:
            raise
        _print_error(f"{place}: {os.strerror(error.errno)}")
        return FAILED


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    otel_environment.normalize(
        os.environ
    )  # before anything of OpenTelemetry is imported, here and in processes that inherit it
    try:
        code: int = options.run(options)
    except Faults as found:
        _print_error(str(Faults(_located(options, found.faults))))
        return FAILED
    except KeyboardInterrupt:
        return 130
    return code


def _restore_sigchld() -> None:
    """Undo an ignored SIGCHLD that a parent hands on: exit codes of children would be lost (POSIX, ``wait``)."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _discard_output() -> None:
    """Redirect standard output to /dev/null: its buffer would fail again at the end of the interpreter."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _print_error(text: str) -> None:
    print(text, file=sys.stderr)


def _warn_of_ignored_variables() -> None:
    """Print a warning for each variable of OpenTelemetry that is ignored. A component logs them itself."""
    for text in otel_environment.take_warnings():
        _print_error(f"warning: {text}")


# -- the commands --


def _file(options: argparse.Namespace) -> Path:
    """Return the path of the manifest: that of ``--file``, or the nearest one, here or above."""
    if options.file is not None:
        path = Path(options.file)
        return path / FILE if path.is_dir() else path
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE).is_file():
            return folder / FILE
    raise Faults([Fault(FILE, f"not found in {here} or above; name it with --file, or make one: mesh new NAME")])


def _located(options: argparse.Namespace, faults: Sequence[Fault]) -> list[Fault]:
    """Return the faults, those of mesh.toml with the lines of their keys."""
    from mesh.config.toml_lines import TomlLines

    try:
        file = _file(options)
        lines = TomlLines(file.name, file.read_text(encoding="utf-8", errors="replace"))
    except (Faults, OSError):
        return list(faults)
    return [lines.located(fault) for fault in faults]


def _load(options: argparse.Namespace) -> tuple[Manifest, Contract]:
    from mesh.control import project

    return project.load(_file(options))


def _generate(options: argparse.Namespace) -> int:
    from mesh.config import manifest
    from mesh.contract import protoc
    from mesh.control import project

    found = manifest.load(_file(options))
    fresh = protoc.generate(found.protos, found.stubs, force=options.force)
    project.compile_contract(found)
    print(f"{found.stubs}: {'generated' if fresh else 'current'}")
    return 0


def _check(options: argparse.Namespace) -> int:
    try:
        return _checked(options)
    except Faults as found:
        if options.format == "text":
            raise
        from mesh.control.commands import check_against

        check_against.print_faults(_file(options), _located(options, found.faults), options.format)
        return FAILED


def _checked(options: argparse.Namespace) -> int:
    from mesh.control.commands import check

    _warn_of_ignored_variables()
    manifest, contract, warnings = check.checked(_file(options))
    for warning in _located(options, warnings):
        _print_error(f"warning: {warning}")
    if options.against_running:
        from mesh.control.commands import check_against

        return check_against.run_running(manifest, contract, options.format)
    if options.against is not None:
        from mesh.control.commands import check_against

        return check_against.run(manifest, contract, options.against, options.format)
    if options.format == "json":
        from mesh.control.commands import check_against

        check_against.print_faults(_file(options), [], options.format)
        return 0
    routes = sum(len(method.routes) for method in contract.methods.values())
    print(
        f"ok: {len(manifest.services)} services, {len(contract.services)} gRPC services, "
        f"{len(contract.methods)} methods, {routes} HTTP routes, {len(contract.events)} events"
    )
    return 0


def _up(options: argparse.Namespace) -> int:
    from mesh.control.commands import up

    _warn_of_ignored_variables()
    return up.run(
        _file(options), raw=options.logs == "json", reload=options.reload, max_restart_delay=options.restart_within
    )


def _sidecar(options: argparse.Namespace) -> int:
    from mesh.control.component import process

    return process.run(_file(options), options.name, options.fd, migrate=not options.no_migrations)


def _edge(options: argparse.Namespace) -> int:
    from mesh.control.component import process

    return process.run(_file(options), None, options.fd)


def _graph(options: argparse.Namespace) -> int:
    from mesh.control.commands import graph_view

    manifest, contract = _load(options)
    print(graph_view.FORMATS[options.format](manifest, contract))
    return 0


def _call(options: argparse.Namespace) -> int:
    from mesh.control.commands import invoke

    words = options.words
    if len(words) > 2:  # noqa: PLR2004 - an address and a method
        options.usage("expected [ADDRESS] SERVICE/METHOD")
    address = words[0] if len(words) == 2 else None  # noqa: PLR2004 - as above
    return invoke.run(
        lambda: _file(options),
        address,
        words[-1],
        data=options.data,
        headers=options.header,
        token=options.token,
        timeout=options.timeout,
        verbose=options.verbose,
    )


def _health(options: argparse.Namespace) -> int:
    from mesh.control.commands import health

    return health.run(lambda: _file(options), options.address, options.timeout, live=options.live)


def _trace(options: argparse.Namespace) -> int:
    from mesh.control.commands import trace

    return trace.show(_file(options), options.id)


def _export_openapi(options: argparse.Namespace) -> int:
    from mesh.control.commands import export

    _, contract = _load(options)
    out = Path(options.out) if options.out is not None else None
    return export.openapi(contract, out, title=options.title, version=options.api_version, servers=options.server)


def _export_contract(options: argparse.Namespace) -> int:
    from mesh.control.commands import export

    if options.running:
        from mesh.config import manifest
        from mesh.control.commands.running_contract import running_contract

        return export.contract(running_contract(manifest.load(_file(options))), Path(options.out))
    _, contract = _load(options)
    return export.contract(contract, Path(options.out))


def _export_asyncapi(options: argparse.Namespace) -> int:
    from mesh.control.commands import export

    _, contract = _load(options)
    out = Path(options.out) if options.out is not None else None
    return export.asyncapi(contract, out, title=options.title, version=options.api_version)


def _export_nats(options: argparse.Namespace) -> int:
    from mesh.control.commands import export

    manifest, contract = _load(options)
    keys = Path(options.keys) if options.keys is not None else None
    return export.nats(manifest, contract, Path(options.out) if options.out is not None else None, keys)


def _export_protos(options: argparse.Namespace) -> int:
    from mesh.control.commands import export

    return export.protos(*_load(options), Path(options.folder))


def _export_schema(options: argparse.Namespace) -> int:
    from mesh.control.commands import export

    return export.schema(Path(options.out) if options.out is not None else None)


def _export_typescript(options: argparse.Namespace) -> int:
    from mesh.control.commands import export

    _, contract = _load(options)
    return export.typescript(contract, Path(options.out) if options.out is not None else None)


def _export_python(options: argparse.Namespace) -> int:
    from mesh.control.commands import export

    _, contract = _load(options)
    return export.python(contract, Path(options.out) if options.out is not None else None)


def _keys(options: argparse.Namespace) -> int:
    return keys_arguments.run(options, _file(options))


def _secrets(options: argparse.Namespace) -> int:
    return secret_arguments.run(options, _file(options))


def _apikeys(options: argparse.Namespace) -> int:
    return apikey_arguments.run(options, _file(options))


def _new(options: argparse.Namespace) -> int:
    from mesh.control.commands import new

    try:
        file = _file(options)
    except Faults:
        file = Path.cwd() / FILE
    return new.run(file, options.name)


def _chaos(options: argparse.Namespace) -> int:
    return chaos_command.run(options, None if options.endings else _file(options))


def _events(options: argparse.Namespace) -> int:
    return events_arguments.run(options, _file(options))


# -- the parser --

AddCommand: TypeAlias = Callable[..., argparse.ArgumentParser]
"""Adds a command: name, function that runs it, summary, text, and the group if it is not ``mesh`` itself."""


def _parser() -> argparse.ArgumentParser:
    """Return the parser. The commands are added in the order in which ``mesh --help`` lists them."""
    parser = argparse.ArgumentParser(
        prog="mesh",
        description="Write gRPC microservices as plain Python functions: a contract, a function, one command.",
        epilog="mesh COMMAND --help explains a command with examples.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, text: str, group: Any = commands
    ) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = group.add_parser(
            name,
            help=summary,
            description=f"{summary[:1].upper()}{summary[1:]}.\n\n{text.strip()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument(
            "-f", "--file", metavar="FILE", help="mesh.toml, or its folder (default: the nearest one, here or above)"
        )
        added.set_defaults(run=run, usage=added.error)
        return added

    _add_up(command)
    _add_call(command)
    command("trace", _trace, "list the last traces, or show one as a tree", _TRACE).add_argument(
        "id", nargs="?", metavar="ID", help="the trace id, or its first digits"
    )
    command("graph", _graph, "show the services in the order of their dependencies", _GRAPH).add_argument(
        "--format", choices=("text", "mermaid", "dot", "json"), default="text", help="default: text"
    )
    _add_check(command)
    command("generate", _generate, "make the Python stubs of the contract", _GENERATE).add_argument(
        "--force", action="store_true", help="make them even if they are current"
    )
    command("new", _new, "add a service: contract, function, test", _NEW).add_argument("name", metavar="NAME")
    _add_sidecar(command)
    command("edge", _edge, "run the edge in the foreground", _EDGE).add_argument("--fd", type=int, help=_FD)
    _add_health(command)
    keys_arguments.add(command, _keys)
    secret_arguments.add(command, commands, _secrets)
    apikey_arguments.add(command, commands, _apikeys)
    events_arguments.add(command, commands, _events)
    chaos_command.add(command, _chaos)
    _add_export(command, commands)
    return parser


def _add_up(command: AddCommand) -> None:
    up = command("up", _up, "start the whole mesh on this machine", _UP)
    up.add_argument("--logs", choices=("text", "json"), default="text", help="format of log lines (default: text)")
    up.add_argument("--reload", action="store_true", help="run new code when files change, without losing a call")
    up.add_argument(
        "--restart-within", type=float, default=15.0, metavar="SECONDS",
        help="longest delay before a component that died is started again (default: 15)",
    )  # fmt: skip


def _add_call(command: AddCommand) -> None:
    call = command("call", _call, "call any method of a running service", _CALL)
    call.add_argument("words", nargs="+", metavar="[ADDRESS] SERVICE/METHOD", help="the method, and its address")
    call.add_argument("-d", "--data", default="", help="the request as JSON; @FILE or @- (standard input) reads it")
    call.add_argument(
        "-H", "--header", action="append", default=[], metavar="KEY:VALUE", help="request metadata; can be repeated"
    )
    call.add_argument("--token", help="the user's access token, sent as 'authorization: Bearer TOKEN'")
    call.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="default: 30")
    call.add_argument("-v", "--verbose", action="store_true", help="show the response's headers, trailers and status")


def _add_check(command: AddCommand) -> None:
    check = command("check", _check, "find every fault of contract, mesh.toml and functions", _CHECK)
    reference = check.add_mutually_exclusive_group()
    reference.add_argument(
        "--against", metavar="REF",
        help="also find the changes that break clients, events or calls since a git commit, or since the contract in a "
        "file of `mesh export contract`",
    )  # fmt: skip
    reference.add_argument(
        "--against-running", action="store_true",
        help="the same since the contract of the running mesh; its stored events are read with the new contract too",
    )  # fmt: skip
    check.add_argument(
        "--format", choices=("text", "json", "github"), default="text",
        help="text (the default), json, or annotations of a GitHub workflow",
    )  # fmt: skip


def _add_sidecar(command: AddCommand) -> None:
    sidecar = command("sidecar", _sidecar, "run one service in the foreground", _SIDECAR)
    sidecar.add_argument("name", metavar="NAME", help="the service's name in mesh.toml")
    sidecar.add_argument("--fd", type=int, help=_FD)
    sidecar.add_argument("--no-migrations", action="store_true", help="open the database without migrating it")


def _add_health(command: AddCommand) -> None:
    health = command("health", _health, "check whether a component is serving", _HEALTH)
    health.add_argument("address", nargs="?", metavar="ADDRESS", help="host:port (gRPC), http://host:port, or a name")
    health.add_argument("--live", action="store_true", help="check liveness: whether the event loop turns")
    health.add_argument("--timeout", type=float, default=3.0, metavar="SECONDS", help="default: 3")


def _add_export(command: AddCommand, commands: Any) -> None:
    formats = commands.add_parser("export", help="write the contract as a document for other tools").add_subparsers(
        title="formats", metavar="FORMAT", required=True
    )
    openapi = command(
        "openapi", _export_openapi, "write the OpenAPI 3.1 document of the edge", _EXPORT_OPENAPI, formats
    )
    asyncapi = command(
        "asyncapi", _export_asyncapi, "write the AsyncAPI 3.0 document of the events", _EXPORT_ASYNC, formats
    )
    compiled = command(
        "contract", _export_contract, "write the compiled contract, as protoc, buf and check --against read it",
        _EXPORT_CONTRACT, formats,
    )  # fmt: skip
    compiled.add_argument(
        "-o", "--out", metavar="FILE", default="contract.binpb", help="write to this file; default: contract.binpb"
    )
    compiled.add_argument("--running", action="store_true", help="the contract of the running mesh, by reflection")
    nats = command(
        "nats", _export_nats, "write the users and rights for a nats-server's configuration", _EXPORT_NATS, formats
    )
    nats.add_argument(
        "--keys", metavar="DIR", help="folder that `mesh keys --each` has filled; default: this mesh's keys"
    )
    nats.add_argument("--out", metavar="FILE", help="write to this file; default: standard output")
    command(
        "protos", _export_protos, "write the files that the contract imports", _EXPORT_PROTOS, formats
    ).add_argument("folder", metavar="DIR", help="folder for them; it is made if it is missing")
    typescript = command(
        "typescript", _export_typescript, "write a TypeScript client of the HTTP routes", _EXPORT_TYPESCRIPT, formats
    )
    python = command("python", _export_python, "write a Python client of the HTTP routes", _EXPORT_PYTHON, formats)
    for client in (typescript, python):
        client.add_argument("-o", "--out", metavar="FILE", help="default: standard output")
    command("schema", _export_schema, "write the JSON Schema of mesh.toml", _EXPORT_SCHEMA, formats).add_argument(
        "-o", "--out", metavar="FILE", help="default: standard output"
    )
    for document in (openapi, asyncapi):
        document.add_argument("-o", "--out", metavar="FILE", help="default: standard output")
        document.add_argument("--title", default="Mesh", help="title of the API (default: Mesh)")
        document.add_argument(
            "--api-version", default="", metavar="TEXT", help="version of the API (default: a digest of the contract)"
        )
    openapi.add_argument("--server", action="append", default=[], metavar="URL", help="its URL; can be repeated")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"function-mesh {version('function-mesh')}")
        parser.exit()


_UP = """
Starts every service of mesh.toml in the order of the contract's `calls`, then the edge. Prints their addresses, and
restarts a component that dies. Ctrl-C stops everything in reverse order; a second Ctrl-C kills.

With --reload, changed functions and contracts take effect while the mesh runs, without losing a call. Code that cannot
be loaded is reported, and the old code keeps running.

  mesh up
  mesh up --reload
  mesh up --file other/mesh.toml --logs json
  MESH_SERVICES_LOGIN_DATABASE=postgresql://me@localhost/login mesh up
"""
_CALL = """
The method is found by reflection, without stubs. A name may be shortened while it is unique. Without an address, the
service is looked up in mesh.toml and in the running mesh. Requests and responses are JSON, those of a stream one after
the other. An error is printed with its details, and the exit code is 64 plus its gRPC code.

  mesh call login.v1.Login/Login -d '{"login": "ada", "password": "..."}'
  mesh call Registration/GetUser -d '{"id": "me"}' --token "$TOKEN"
  mesh call 127.0.0.1:9101 Registration/ListUsers -v
  mesh call Chat/Talk -d '{"text": "a"} {"text": "b"}'       a stream of two requests
  mesh call Chat/Talk -d @-                                  requests from standard input, as they come
"""
_TRACE = """
`mesh up` keeps the last traces when no collector is configured (OTEL_EXPORTER_OTLP_ENDPOINT). The header x-trace-id of
an HTTP response is its trace id.

  mesh trace
  mesh trace 4bf92f35
"""
_GRAPH = """
Shows what each service serves, calls and publishes, the triggers of its methods, and cycles of events.

  mesh graph
  mesh graph --format mermaid >> docs/graph.md
  mesh graph --format dot | dot -Tsvg > graph.svg
  mesh graph --format json
"""
_CHECK = """
Loads the contract, mesh.toml and every module, and prints each fault with its file and line. It compares the
annotations of functions with the contract too.

  mesh check
  mesh check --file other/mesh.toml

With --against, it also compares the contract with an earlier one, and prints each change that breaks somebody: in the
binary form and in JSON, and in routes, access, time limits, retry safety, events, triggers and rules. A line says who
is affected, and what would be compatible. A break that is meant is accepted in the contract, with its reason:
docs/compatibility.md.

  mesh check --against main
  mesh check --against v1.4 --format github
  mesh check --against contract.binpb --format json

With --against-running, the contract is that of the running mesh. Rows of outboxes, retained events and dead letters are
decoded with the new contract. Those that it cannot decode or does not accept are counted, with their first ids.

  mesh check --against-running

Exit codes: 0 nothing found, or every break accepted; 1 a fault; 2 wrong usage; 3 a break that is not accepted.
"""
_GENERATE = """
Writes messages, gRPC stubs and type stubs (.pyi) of every .proto file below `protos` to the folder `stubs` of
mesh.toml. Other commands do this by themselves when a .proto file has changed.

  mesh generate
  mesh generate --force
"""
_NEW = """
Adds protos/NAME/v1/NAME.proto, services/NAME/functions.py, tests/test_NAME.py and the table [services.NAME] of
mesh.toml. In a folder without a project it makes the project too. Existing files are not overwritten.

  mesh new hello
  mesh up
  curl localhost:8080/v1/hello/Ada
"""
_SIDECAR = """
Runs one service until SIGTERM, as in a container.

  mesh sidecar login
  MESH_SERVICES_LOGIN_LISTEN=0.0.0.0:9102 mesh sidecar login
"""
_EDGE = """
Runs the edge, which serves HTTP, until SIGTERM, as in a container.

  mesh edge
  MESH_EDGE_LISTEN=0.0.0.0:8080 mesh edge
"""
_HEALTH = """
Exit code 0 if it is serving, 1 if not. A service is checked by the gRPC health protocol, the edge by GET /healthz.
Without an address, all components of mesh.toml are checked.

With --live, liveness is checked: whether the event loop turns, also while the component drains or has no free permit.
It is the gRPC health service named "liveness", and GET /livez of the edge.

  mesh health 127.0.0.1:9101
  mesh health http://127.0.0.1:8080
  mesh health login
  mesh health edge
  mesh health --live edge
"""
_EXPORT_OPENAPI = """
The document has every HTTP route with its parameters, bodies, errors and access rule. Comments of the .proto files
are the descriptions. The edge serves the same document at /openapi.json and shows it at /docs.

  mesh export openapi --out openapi.json
  mesh export openapi --title "Accounts" --api-version 1.4 --server https://api.example.com
"""
_EXPORT_CONTRACT = """
The file is a google.protobuf.FileDescriptorSet with all imports, comments, and the services of Lambda functions.

  mesh export contract --out contract.binpb
  mesh export contract --running --out running.binpb
  mesh check --against contract.binpb
  buf generate contract.binpb --template buf.gen.yaml
"""
_EXPORT_NATS = """
Writes the authorization block of a nats-server's configuration: one user for each service that publishes or receives
events, with its public NKEY and the rights that follow from the contract, and one for the operator. Missing keys are
made. The block holds no secret; the keys stay with the services. Include it in the configuration of the server, and
write it again when the contract has changed.

  mesh export nats --out authorization.conf
  mesh export nats --keys .mesh/keys --out .mesh/keys/broker/authorization.conf
"""
_EXPORT_ASYNC = """
The document has every event with its channel on the broker, its headers and fields, its publishers and the methods
that receive it.

  mesh export asyncapi --out asyncapi.json
  mesh export asyncapi --title "Accounts" --api-version 1.4
"""
_EXPORT_PROTOS = """
Writes the .proto files that the contract imports and that are in no import root of mesh.toml: meshapi, google/api and
the like. buf, protoc and editors need them; the mesh itself has them. Name the folder as a module in buf.yaml, or as an
import path (-I) for protoc. `mesh new` has done so for a new project.

  mesh export protos third_party
  buf lint
"""
_EXPORT_SCHEMA = """
Editors complete and check the keys of mesh.toml by the schema (Even Better TOML for VS Code, taplo, tombi). The first
line of mesh.toml names it:

  #:schema ./mesh.schema.json

  mesh export schema -o mesh.schema.json
"""
_EXPORT_TYPESCRIPT = """
One file without dependencies, for browsers and Node: the types of the contract, a method for each method with a route,
errors with code and details, streams as async iterators, and the rules of fields. Write it again when the contract has
changed.

  mesh export typescript -o web/src/client.ts
"""
_EXPORT_PYTHON = """
One file that needs httpx only: messages as dataclasses, a method for each method with a route, an exception for each
code, streams as iterators, and the rules of fields. It has a blocking class and an asynchronous one. Write it again
when the contract has changed.

  mesh export python -o client.py
"""
