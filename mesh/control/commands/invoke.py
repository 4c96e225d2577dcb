"""``mesh call``: one gRPC call by reflection; JSON in, JSON out, the status as the exit code."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from mesh.address import reachable
from mesh.call import encode_pair
from mesh.config.manifest import Manifest, load
from mesh.control import run_state
from mesh.control.operator_tls import operator_tls, tls_at
from mesh.errors import Code
from mesh.faults import Fault, Faults
from mesh.rpc.client import reflection_client
from mesh.text import json_for

if TYPE_CHECKING:
    from mesh.rpc.client.service_tls import ServiceTls

__all__ = ["documents", "given", "run"]

STATUS_EXIT_CODE = 64
"""Exit code of a call that ended with gRPC code N is this plus N, as with grpcurl."""

_DECODER = json.JSONDecoder()


def run(
    file: Callable[[], Path],
    address: str | None,
    method: str,
    *,
    data: str,
    headers: Sequence[str],
    token: str | None,
    timeout: float,
    verbose: bool,
) -> int:
    """Call a method and print its responses.

    Args:
        file: Returns mesh.toml; called only when there is no address.
        address: ``host:port``, or None to look the service up in mesh.toml.
        method: ``Service/Method``.
        data: The requests as JSON documents, one after the other; ``@FILE`` or ``@-`` to read them.
        headers: ``key:value`` each; the value of a ``-bin`` key in base64.
        token: A user's access token.
        timeout: Seconds that the call may take.
        verbose: Print metadata and status on standard error.

    Returns:
        The exit code.

    Raises:
        Faults: The service cannot be found, or the request does not fit the method.
    """
    if "/" not in method.strip("/"):
        raise Faults([Fault(method, "expected SERVICE/METHOD, as in login.v1.Login/Login")])
    pairs = [_pair(header) for header in headers]
    if token:
        pairs.append(_sendable("--token", "authorization", f"Bearer {token}"))
    manifest = tls = None
    if address is None:
        manifest = load(file())
        name = _service_of(manifest, method.strip("/").rpartition("/")[0])
        address = _address_of(manifest, name)
        tls = operator_tls(manifest, name)
    else:
        tls = tls_at(file, address)
    try:
        code = _call(address, method, data, pairs, timeout, tls, verbose=verbose)
    except reflection_client.NoSuchMethod as error:
        raise Faults([Fault(address, str(error))]) from None
    if (
        code == STATUS_EXIT_CODE + Code.UNAVAILABLE
        and manifest is not None
        and run_state.running(manifest.state) is None
    ):
        sys.stderr.write(f"{manifest.file}: the mesh does not run here; start it with `mesh up`\n")
    return code


def _service_of(manifest: Manifest, service: str) -> str:
    """Return the service of mesh.toml that hosts a gRPC service, by its full name or the end of it.

    Raises:
        Faults: No service of mesh.toml serves it, or more than one matches.
    """
    hosts = {full: name for name, config in manifest.services.items() for full in config.serves}
    try:
        return hosts[reflection_client.find(service, list(hosts))]
    except reflection_client.NoSuchMethod as error:
        raise Faults([Fault(str(manifest.file), str(error))]) from None


def _address_of(manifest: Manifest, name: str) -> str:
    """Return the current address of a service of mesh.toml.

    Raises:
        Faults: It listens on a free port and the mesh does not run.
    """
    mesh = run_state.running(manifest.state)
    if mesh is not None and name in mesh.addresses:
        return reachable(mesh.addresses[name])
    address = manifest.services[name].addresses[0]
    if address.endswith(":0"):
        place = f"{manifest.file.name} [services.{name}]"
        raise Faults(
            [
                Fault(
                    place,
                    "it listens on a free port, and `mesh up` does not run; give the address: mesh call ADDRESS METHOD",
                )
            ]
        )
    return address


def _pair(header: str) -> tuple[str, str | bytes]:
    key, colon, value = header.partition(":")
    key, value = key.strip().lower(), value.strip()
    if not colon or not key:
        raise Faults([Fault(f"-H {header!r}", "expected KEY:VALUE")])
    if key.endswith("-bin"):
        try:
            return key, base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
        except ValueError:
            raise Faults([Fault(f"-H {header!r}", "the value of a -bin key is base64")]) from None
    return _sendable(f"-H {header!r}", key, value)


def _sendable(place: str, key: str, value: str) -> tuple[str, str]:
    """Return a pair of metadata.

    Raises:
        Faults: gRPC cannot send it.
    """
    try:
        encode_pair(key, value)
    except ValueError as error:
        raise Faults([Fault(place, str(error))]) from None
    return key, value


def _call(
    address: str,
    method: str,
    data: str,
    pairs: reflection_client.Pairs,
    timeout: float,
    tls: ServiceTls | None,
    *,
    verbose: bool,
) -> int:
    outcome = reflection_client.ResponseMetadata()
    code, status = 0, "OK"
    try:
        with reflection_client.ReflectionClient(address, timeout, tls) as client:
            found = client.method(method)
            indent = None if found.server_streaming else 2
            for value in client.call(found, _requests(client, found, data), pairs, outcome):
                _print(value, sys.stdout, indent)
    except ValueError as error:
        raise Faults([Fault("-d", str(error))]) from None
    except reflection_client.ReflectionCallError as error:
        outcome.trailers = error.trailers
        code, status = STATUS_EXIT_CODE + error.code, error.name
        sys.stderr.write(f"{error}\n")
        for detail in error.details:
            _print(detail, sys.stderr, 2)
    if verbose:
        for arrow, metadata in (("<", outcome.headers), ("<<", outcome.trailers)):
            for key, text in metadata:
                shown = base64.b64encode(text).decode() if isinstance(text, bytes) else text
                sys.stderr.write(f"{arrow} {key}: {shown}\n")
        sys.stderr.write(f"status {status}\n")
    return code


def _print(value: Any, stream: TextIO, indent: int | None) -> None:
    stream.write(json_for(stream, value, indent=indent) + "\n")
    stream.flush()


# -- requests --


def documents(text: str) -> Iterator[Any]:
    """Yield the JSON documents of a text, with any white space between them.

    Raises:
        ValueError: A document is no JSON.
    """
    at, end = 0, len(text)
    while True:
        while at < end and text[at].isspace():
            at += 1
        if at == end:
            return
        try:
            value, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from None
        yield value


def _requests(client: reflection_client.ReflectionClient, method: MethodDescriptor, data: str) -> Iterator[Message]:
    """Yield the request messages; raise ``ValueError`` for data that is no request."""
    if method.client_streaming and data == "@-":
        for line in _standard_input():
            for value in documents(line):
                yield client.parse(method, value)
        return
    values = list(documents(given(data)))
    if not method.client_streaming:
        values = values or [{}]
        if len(values) > 1:
            raise ValueError(f"{method.full_name} takes one request, not {len(values)}")
    yield from [client.parse(method, value) for value in values]


def given(data: str) -> str:
    """Return the text of ``--data``: itself, the file after ``@``, or standard input for ``@-``.

    Raises:
        ValueError: The file cannot be read.
    """
    if data == "@-":
        return _standard_input().read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{data[1:]} cannot be read: {error.strerror}") from None
    return data


def _standard_input() -> TextIO:
    """Return standard input as UTF-8, the encoding of JSON (RFC 8259, 8.1), also in a terminal with another one."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    return sys.stdin or io.StringIO()
