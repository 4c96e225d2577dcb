"""The command ``mesh``. Each subcommand imports what it needs when it runs, so that ``--help`` needs nothing."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.chaos import arguments as chaos_command
from mesh.control.commands import events_arguments
from mesh.faults import Fault, Faults
from mesh.telemetry import otel_environment
from mesh.text import ready_output

if TYPE_CHECKING:
    from mesh.config.manifest import Manifest
    from mesh.contract.model import Contract

__all__ = ["main"]

FILE = "mesh.toml"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
FAILED = 1
"""Exit code: something is wrong with the project, or with what was asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (faults), 2 (wrong usage), 64 + code (a call's status)."""
    _hear_of_children()
    ready_output()
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # here, and not when the interpreter ends, a failure can be said
    except BrokenPipeError:  # `mesh graph | head`
        _let_go()
        return FAILED
    except OSError as error:
        if error.errno in (*_FULL, *_DENIED) and error.filename is not None:
            place = os.fsdecode(error.filename)
        elif error.errno in _FULL:  # Python does not say which
            _let_go()
            place = "standard output, or a file of the mesh, cannot be written"
        else:
            raise
        _complain(f"{place}: {os.strerror(error.errno)}")
        return FAILED


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    otel_environment.normalize(
        os.environ
    )  # before anything of OpenTelemetry is imported, here and in processes that inherit it
    try:
        code: int = options.run(options)
    except Faults as faults:
        _complain(str(faults))
        return FAILED
    except KeyboardInterrupt:
        return 130
    return code


def _hear_of_children() -> None:
    """Undo what a parent that ignores SIGCHLD hands on: the exit codes of children would be lost (POSIX, ``wait``)."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _let_go() -> None:
    """Lead standard output nowhere: what it still holds would fail again when the interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


def _warn() -> None:
    """Say which of OpenTelemetry's variables are ignored; a component logs it itself."""
    for text in otel_environment.take_warnings():
        _complain(f"warning: {text}")


# -- the commands --


def _file(options: argparse.Namespace) -> Path:
    """Return the manifest: the one that was named, or the nearest one above the current folder."""
    if options.file is not None:
        named = Path(options.file)
        return named / FILE if named.is_dir() else named
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE).is_file():
            return folder / FILE
    raise Faults(
        [Fault(FILE, f"not found in {here} or above; say where it is with --file, or make one: mesh new NAME")]
    )


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
    from mesh.control import deployment

    _warn()
    manifest, contract = _load(options)
    faults = deployment.all_faults(manifest, contract)
    if faults:
        raise Faults(faults)
    routes = sum(len(method.routes) for method in contract.methods.values())
    print(
        f"ok: {len(manifest.services)} services, {len(contract.services)} gRPC services, "
        f"{len(contract.methods)} methods, {routes} HTTP routes, {len(contract.events)} events"
    )
    return 0


def _up(options: argparse.Namespace) -> int:
    from mesh.control.commands import up

    _warn()
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

    return health.run(lambda: _file(options), options.address, options.timeout)


def _trace(options: argparse.Namespace) -> int:
    from mesh.control.commands import trace

    return trace.show(_file(options), options.id)


def _export_openapi(options: argparse.Namespace) -> int:
    from mesh.control.commands import export

    _, contract = _load(options)
    out = Path(options.out) if options.out is not None else None
    return export.openapi(contract, out, title=options.title, version=options.api_version, servers=options.server)


def _export_asyncapi(options: argparse.Namespace) -> int:
    from mesh.control.commands import export

    _, contract = _load(options)
    out = Path(options.out) if options.out is not None else None
    return export.asyncapi(contract, out, title=options.title, version=options.api_version)


def _keys(options: argparse.Namespace) -> int:
    from mesh.config import manifest
    from mesh.control import identity_keys

    found = manifest.load(_file(options))
    print(identity_keys.ensure_each(found, Path(options.each)) if options.each else identity_keys.ensure(found))
    return 0


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


# -- their words --


def _parser() -> argparse.ArgumentParser:
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
        made: argparse.ArgumentParser = group.add_parser(
            name,
            help=summary,
            description=f"{summary[:1].upper()}{summary[1:]}.\n\n{text.strip()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.add_argument(
            "-f", "--file", metavar="FILE", help="mesh.toml, or its folder (default: the nearest one, here or above)"
        )
        made.set_defaults(run=run, usage=made.error)
        return made

    made = command("up", _up, "start the whole mesh on this machine", _UP)
    made.add_argument(
        "--logs", choices=("text", "json"), default="text", help="how log lines are shown (default: text)"
    )
    made.add_argument("--reload", action="store_true", help="run the new code when files change, without losing a call")
    made.add_argument(
        "--restart-within", type=float, default=15.0, metavar="SECONDS",
        help="the longest wait before what died again and again is started once more (default: 15)",
    )  # fmt: skip
    made = command("call", _call, "call any method of a running service", _CALL)
    made.add_argument("words", nargs="+", metavar="[ADDRESS] SERVICE/METHOD", help="what to call, and where")
    made.add_argument("-d", "--data", default="", help="the request as JSON; @FILE or @- (standard input) reads it")
    made.add_argument(
        "-H", "--header", action="append", default=[], metavar="KEY:VALUE", help="request metadata; can be repeated"
    )
    made.add_argument("--token", help="the user's access token: sent as 'authorization: Bearer TOKEN'")
    made.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="the deadline (default: 30)")
    made.add_argument("-v", "--verbose", action="store_true", help="show the response's headers, trailers and status")
    command("trace", _trace, "list the last traces, or show one as a tree", _TRACE).add_argument(
        "id", nargs="?", metavar="ID", help="the trace id, or how it begins"
    )
    command("graph", _graph, "show the services in the order of their dependencies", _GRAPH).add_argument(
        "--format", choices=("text", "mermaid", "dot", "json"), default="text", help="default: text"
    )
    command("check", _check, "find every fault of contract, mesh.toml and functions", _CHECK)
    command("generate", _generate, "make the Python stubs of the contract", _GENERATE).add_argument(
        "--force", action="store_true", help="even if they are current"
    )
    command("new", _new, "add a service: contract, function, test", _NEW).add_argument("name", metavar="NAME")
    made = command("sidecar", _sidecar, "run one service in the foreground", _SIDECAR)
    made.add_argument("name", metavar="NAME", help="the service's table in mesh.toml")
    made.add_argument("--fd", type=int, help="a listening socket to serve instead of `listen`")
    made.add_argument("--no-migrations", action="store_true", help="open the database as it is")
    command("edge", _edge, "run the edge in the foreground", _EDGE).add_argument(
        "--fd", type=int, help="a listening socket to serve instead of `listen`"
    )
    made = command("health", _health, "ask whether something is serving", _HEALTH)
    made.add_argument("address", nargs="?", metavar="ADDRESS", help="host:port (gRPC), http://host:port, or a name")
    made.add_argument("--timeout", type=float, default=3.0, metavar="SECONDS", help="default: 3")
    command("keys", _keys, "make the services' identity keys that are missing", _KEYS).add_argument(
        "--each", metavar="FOLDER", help="one folder for each service, and for the edge, below this one"
    )
    events_arguments.add(command, commands, _events)
    chaos_command.add(command, _chaos)
    formats = commands.add_parser("export", help="write what the contract says for other tools").add_subparsers(
        title="formats", metavar="FORMAT", required=True
    )
    made = command("openapi", _export_openapi, "write the OpenAPI 3.1 document of the edge", _EXPORT_OPENAPI, formats)
    made.add_argument("-o", "--out", metavar="FILE", help="default: standard output")
    made.add_argument("--title", default="Mesh", help="what the API is called (default: Mesh)")
    made.add_argument(
        "--api-version", default="", metavar="TEXT", help="its version (default: a digest of the contract)"
    )
    made.add_argument("--server", action="append", default=[], metavar="URL", help="where it is; can be repeated")
    made = command(
        "asyncapi", _export_asyncapi, "write the AsyncAPI 3.0 document of the events", _EXPORT_ASYNC, formats
    )
    made.add_argument("-o", "--out", metavar="FILE", help="default: standard output")
    made.add_argument("--title", default="Mesh", help="what the API is called (default: Mesh)")
    made.add_argument(
        "--api-version", default="", metavar="TEXT", help="its version (default: a digest of the contract)"
    )
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"function-mesh {version('function-mesh')}")
        parser.exit()


_UP = """
Starts every service of mesh.toml in the order of the contract's `calls`, then the edge; prints what listens where;
starts again what crashes; Ctrl-C stops everything in reverse order, a second Ctrl-C kills.

With --reload, changed functions and contracts take effect while the mesh runs. No call is lost; what cannot be loaded
leaves the old code running, and is said.

  mesh up
  mesh up --reload
  mesh up --file other/mesh.toml --logs json
  MESH_SERVICES_LOGIN_DATABASE=postgresql://me@localhost/login mesh up
"""
_CALL = """
The method is found by reflection: no stubs are needed. Short names will do where they are clear. Without an address,
the service is looked up in mesh.toml and the mesh that runs. Requests and responses are JSON; of a stream, one
document after the other. An error is printed with its details, and the exit code is 64 + its gRPC code.

  mesh call login.v1.Login/Login -d '{"login": "ada", "password": "..."}'
  mesh call Registration/GetUser -d '{"id": "me"}' --token "$TOKEN"
  mesh call 127.0.0.1:9101 Registration/ListUsers -v
  mesh call Chat/Talk -d '{"text": "a"} {"text": "b"}'       a stream of two requests
  mesh call Chat/Talk -d @-                                  requests from standard input, as they come
"""
_TRACE = """
`mesh up` keeps the last traces when no collector is configured (OTEL_EXPORTER_OTLP_ENDPOINT). Every HTTP response names
its trace.

  mesh trace
  mesh trace 4bf92f35
"""
_GRAPH = """
What each service serves, calls and publishes, what triggers its methods, and circles of events.

  mesh graph
  mesh graph --format mermaid >> docs/graph.md
  mesh graph --format dot | dot -Tsvg > graph.svg
  mesh graph --format json
"""
_CHECK = """
Loads the contract, mesh.toml and every module, and prints one line for each fault with its place.

  mesh check
  mesh check --file other/mesh.toml
"""
_GENERATE = """
Messages, gRPC stubs and type stubs (.pyi) of every .proto file below `protos` go to the folder `stubs` of mesh.toml.
Other commands do this by themselves when a .proto file has changed.

  mesh generate
  mesh generate --force
"""
_NEW = """
In a project: adds protos/NAME/v1/NAME.proto, services/NAME/functions.py, tests/test_NAME.py and the table
[services.NAME] of mesh.toml. In a folder without one: makes the project as well. Nothing that exists is overwritten.

  mesh new hello
  mesh up
  curl localhost:8080/v1/hello/Ada
"""
_SIDECAR = """
What a container runs: one service, until SIGTERM.

  mesh sidecar login
  MESH_SERVICES_LOGIN_LISTEN=0.0.0.0:9102 mesh sidecar login
"""
_EDGE = """
What a container runs: the HTTP door, until SIGTERM.

  mesh edge
  MESH_EDGE_LISTEN=0.0.0.0:8080 mesh edge
"""
_HEALTH = """
Exit code 0 if it is serving, 1 if not. A service is asked by the gRPC health protocol, the edge by GET /healthz.

  mesh health 127.0.0.1:9101
  mesh health http://127.0.0.1:8080
  mesh health login
  mesh health edge
"""
_EXPORT_OPENAPI = """
Every route of the contract with its parameters, bodies, errors and who may call it, and the comments of the .proto
files as descriptions. The edge serves the same at /openapi.json, and shows it at /docs.

  mesh export openapi --out openapi.json
  mesh export openapi --title "Accounts" --api-version 1.4 --server https://api.example.com
"""
_EXPORT_ASYNC = """
Every event of the contract with its channel on the broker, its headers and fields, who publishes it and which methods
are called for it.

  mesh export asyncapi --out asyncapi.json
  mesh export asyncapi --title "Accounts" --api-version 1.4
"""
_KEYS = """
Each service proves who it is with a key of its own, in the folder `identity` of the state folder. `mesh up` makes them;
for containers, make them once and mount to each its own folder: it holds one private key and everyone's public keys.

  mesh keys
  mesh keys --each .mesh/keys
"""
