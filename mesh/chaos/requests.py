"""Workload of ``mesh chaos``: chooses the method to call, and sends one HTTP request after another through the edge.

Each request has a word that no other request has. The event that it publishes has the word too, so calls and their
effects can be compared without knowledge of the service.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from mesh.contract.model import Access, Contract, Method
from mesh.faults import Fault, Faults
from mesh.rpc.client.reflection_client import NoSuchMethod, find

if TYPE_CHECKING:
    from collections.abc import Iterable


__all__ = [
    "PLACEHOLDER",
    "UncountableError",
    "Workload",
    "choose_workload",
    "request",
    "sample",
    "send",
    "word",
    "words_in",
]

PLACEHOLDER = "{word}"
"""Placeholder of the word in the data of a request."""
RESPONSE_TIMEOUT = 15.0
"""Seconds to wait for one response."""
_FORM = re.compile(rb"chaos[0-9a-f]+n[0-9]{7}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*")  # RFC 9110, section 5
_VARIABLE = re.compile(r"\{([A-Za-z0-9_.]+)(?:=[^}]*)?\}")


class UncountableError(Exception):
    """No call of this mesh can be made and counted; the text names what is missing."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The calls to make.

    Attributes:
        method: The method.
        data: Its request as JSON, with ``{word}`` in it.
        event: Full name of the event that a successful call publishes.
        headers: ``name: value`` of each further header, such as ``authorization``.
    """

    method: Method
    data: str
    event: str
    headers: tuple[str, ...] = ()


def word(seed: int, index: int) -> str:
    """Return the word of a call."""
    return f"chaos{seed & 0xFFFFFF:x}n{index:07d}"


def words_in(data: bytes) -> set[str]:
    """Return the words in the bytes of a message."""
    return {found.decode() for found in _FORM.findall(data)}


def choose_workload(
    contract: Contract, publishers: Iterable[str], call: str, data: str, event: str, headers: Iterable[str] = ()
) -> Workload:
    """Return the calls to make.

    Args:
        contract: The contract.
        publishers: Full names of the gRPC services whose transactions can be counted.
        call: ``Service/Method``; "": the first method that fits.
        data: Its request as JSON; "": the word in each text field.
        event: The event that it publishes; "": the first that its service declares.
        headers: ``name:value`` of each header of every request.

    Raises:
        Faults: A header is not valid.
        UncountableError: No method fits.
    """
    headers = tuple(headers)
    if wrong := next((one for one in headers if not _HEADER.fullmatch(one)), None):
        raise Faults([Fault(f"-H {wrong!r}", "expected NAME:VALUE")])
    names = [name for name in publishers if contract.services[name].publishes]
    if not names:
        raise UncountableError(
            "nothing can be counted: this needs a service with a `database` in mesh.toml that `publishes` events"
        )
    method = _named(contract, names, call, headers) if call else _first(contract, names)
    template = data or json.dumps(sample(method.input.DESCRIPTOR))
    if PLACEHOLDER not in template:
        raise UncountableError(
            f"the data of {method.path} must have {PLACEHOLDER} in a text field: give it with --data"
        )
    try:
        is_object = isinstance(json.loads(template), dict)
    except ValueError as error:
        raise UncountableError(f"--data is no JSON: {error}") from None
    if not is_object:
        raise UncountableError("--data is no JSON object")
    declared = contract.services[method.service].publishes
    chosen = [name for name in declared if event in ("", name, name.rpartition(".")[2])]
    if not chosen:
        raise UncountableError(f"--event {event}: {method.service} publishes {', '.join(declared)}")
    return Workload(method, template, chosen[0], headers)


def _named(contract: Contract, names: list[str], call: str, headers: tuple[str, ...]) -> Method:
    service, _, name = call.rpartition("/")
    try:
        method = contract.services[find(service, names)].methods.get(name)
    except NoSuchMethod as error:
        raise UncountableError(f"--call {call}: {error} that publishes and has a database") from None
    if method is None or method.kind != "unary_unary" or not method.routes:
        raise UncountableError(f"--call {call}: it must be a unary method with an HTTP route")
    if method.access is not Access.PUBLIC and not any(one.lower().startswith("authorization:") for one in headers):
        raise UncountableError(f"--call {call}: it is not PUBLIC: give a token with -H 'authorization: Bearer TOKEN'")
    return method


def _first(contract: Contract, names: list[str]) -> Method:
    for name in names:
        for method in contract.services[name].methods.values():
            if _fits(method):
                return method
    raise UncountableError(f"no PUBLIC unary method of {', '.join(names)} has a POST route: name a method with --call")


def _fits(method: Method) -> bool:
    posted = bool(method.routes) and method.routes[0].verb == "POST"
    return posted and method.kind == "unary_unary" and method.access is Access.PUBLIC


def sample(message: Any) -> dict[str, str]:
    """Return a request with the word in each text field, as an e-mail address in fields with ``email`` in their name.

    Args:
        message: The descriptor of the request's type.
    """
    return {
        field.name: f"{PLACEHOLDER}@example.com" if "email" in field.name else PLACEHOLDER
        for field in message.fields
        if field.type == field.TYPE_STRING and not field.is_repeated and field.containing_oneof is None
    }


def request(workload: Workload, with_word: str) -> tuple[str, str, bytes | None]:
    """Return verb, path with query, and body of one request."""
    route = workload.method.routes[0]
    data: dict[str, Any] = json.loads(workload.data.replace(PLACEHOLDER, with_word))

    def variable(found: re.Match[str]) -> str:
        return quote(str(data.pop(found[1], "")), safe="/" if "=" in found[0] else "")

    path = _VARIABLE.sub(variable, route.template.text)
    body: Any = None
    if route.body == "*":
        body, data = data, {}
    elif route.body:
        body = data.pop(route.body, {})
    query = f"?{urlencode(data)}" if data else ""
    return route.verb, path + query, None if body is None else json.dumps(body).encode()


async def send(edge: str, workload: Workload, with_word: str) -> int | None:
    """Send one request on a new connection; return the HTTP status, or None when no response came."""
    verb, path, body = request(workload, with_word)
    url = urlsplit(edge)
    head = f"{verb} {path} HTTP/1.1\r\nhost: {url.netloc}\r\nconnection: close\r\n"
    head += "".join(f"{line}\r\n" for line in workload.headers)
    if body is not None:
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    try:
        async with asyncio.timeout(RESPONSE_TIMEOUT):
            reader, writer = await asyncio.open_connection(url.hostname, url.port)
            try:
                writer.write(head.encode() + b"\r\n" + (body or b""))
                await writer.drain()
                first = await reader.readline()
                return int(first.split()[1])
            finally:
                writer.close()
    except (OSError, TimeoutError, IndexError, ValueError):
        return None
