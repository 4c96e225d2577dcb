"""What only contract and mesh.toml together can tell: does the one deploy the other. ``mesh check`` and ``mesh up``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator

from mesh.config.manifest import Manifest
from mesh.contract.model import ChangeTrigger, Contract
from mesh.control import topology
from mesh.database_url import file_faults, parse
from mesh.faults import Fault, Faults
from mesh.lambdas.handlers import functions_of

__all__ = ["deployment", "everything"]


def everything(manifest: Manifest, contract: Contract) -> list[Fault]:
    """Return every fault that can be found without starting anything; imports every module."""
    return [*deployment(manifest, contract), *_database_files(manifest), *_functions(manifest, contract)]


def deployment(manifest: Manifest, contract: Contract) -> list[Fault]:
    """Return every fault that contract and manifest have together."""
    faults = [
        *_served(manifest, contract),
        *_unserved(manifest, contract),
        *_addresses(manifest),
        *_changes(manifest, contract),
        *_jwks(manifest, contract),
    ]
    try:
        topology.layers(manifest, contract)
    except Faults as found:
        faults.extend(found.faults)
    return faults


def _database_files(manifest: Manifest) -> Iterator[Fault]:
    """Each certificate that a database's URL names can be read; only here, since a file may be on one machine only."""
    for name, entry in manifest.services.items():
        if entry.database:
            for text in file_faults(parse(entry.database), os.environ):
                yield Fault(f"{manifest.file.name} [services.{name}] database", text)


def _served(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """Each name in ``serves`` is a service of the contract, and only one entry serves it."""
    owner: dict[str, str] = {}
    for name, entry in manifest.services.items():
        place = f"{manifest.file.name} [services.{name}] serves"
        for service in entry.serves:
            if service not in contract.services:
                yield Fault(place, f"{service!r} is no service of the contract{_near(service, contract)}")
            elif owner.setdefault(service, name) != name:
                yield Fault(place, f"{service!r} is served by [services.{owner[service]}] already")


def _near(service: str, contract: Contract) -> str:
    close = difflib.get_close_matches(service, contract.services, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f" ({', '.join(contract.services) or 'it has none'})"


def _unserved(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """What is called, or has routes, is served."""
    served = {service for entry in manifest.services.values() for service in entry.serves}
    callers: dict[str, str] = {}
    for service in contract.services.values():
        if service.name in served:
            for called in service.calls:
                callers.setdefault(called, service.name)
    for service in contract.services.values():
        if service.name in served:
            continue
        routed = next((method for method in service.methods.values() if method.routes), None)
        why = f"{callers[service.name]} calls it" if service.name in callers else ""
        if not why and routed is not None and manifest.edge is not None:
            why = f"it has the route {routed.routes[0]}"
        if why:
            yield Fault(
                service.place, f"{why}, and no entry of {manifest.file.name} serves it: add {service.name!r} to one"
            )


def _addresses(manifest: Manifest) -> Iterator[Fault]:
    """No two listen at one address."""
    listens = {f"services.{name}": entry.listen for name, entry in manifest.services.items()}
    if manifest.edge is not None:
        listens["edge"] = manifest.edge.listen
    owner: dict[str, str] = {}
    for table, listen in listens.items():
        if not listen.endswith(":0") and owner.setdefault(listen, table) != table:
            yield Fault(
                f"{manifest.file.name} [{table}] listen", f"{listen} is the address of [{owner[listen]}] already"
            )


def _changes(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """A change trigger names an entry, and that has a database."""
    for method in contract.methods.values():
        for trigger in method.triggers:
            if not isinstance(trigger, ChangeTrigger):
                continue
            entry = manifest.services.get(trigger.service)
            who = f"{method.service}.{method.name}: on.change names {trigger.service!r}"
            if entry is None:
                known = ", ".join(manifest.services)
                yield Fault(method.place, f"{who}, which is no entry of {manifest.file.name} ({known})")
            elif not entry.database:
                yield Fault(method.place, f"{who}, which has no database in {manifest.file.name}")


def _functions(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """Each module can be imported and has the functions of what it serves."""
    for name, entry in manifest.services.items():
        try:
            functions_of(entry.module, manifest.lambdas.get(name), topology.served(manifest, contract, name))
        except Faults as found:
            yield from found.faults


def _jwks(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """``[auth] jwks``, if it is a method, is one that can be asked without arguments."""
    if manifest.auth is None or "://" in manifest.auth.jwks:
        return
    place, name = f"{manifest.file.name} [auth] jwks", manifest.auth.jwks
    method = contract.method("/" + name.lstrip("/"))
    if method is None:
        known = difflib.get_close_matches(name, [path[1:] for path in contract.methods], n=1)
        hint = f"; did you mean {known[0]!r}?" if known else ""
        yield Fault(place, f"{name!r} is neither a URL nor a method of the contract{hint}")
    elif method.client_streaming or method.server_streaming or method.input.DESCRIPTOR.fields:
        yield Fault(place, f"{name} must be a unary method whose request has no fields, to answer a JWK set")
    elif manifest.host_of(method.service) is None:
        yield Fault(place, f"no entry serves {method.service}")
