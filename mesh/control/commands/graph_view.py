"""``mesh graph``: the services of mesh.toml in topological order, as text, JSON, mermaid or dot. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, assert_never

from mesh.config.manifest import Manifest
from mesh.contract import graph
from mesh.contract.model import ChangeTrigger, Contract, EventTrigger, Method, ScheduleTrigger
from mesh.control.topology import dependencies, served, start_order

__all__ = ["FORMATS"]


def _methods(manifest: Manifest, contract: Contract, name: str) -> list[Method]:
    return [method for service in served(manifest, contract, name) for method in service.methods.values()]


def _order(manifest: Manifest, contract: Contract) -> list[str]:
    return [name for group in start_order(manifest, contract) for name in group]


def _routed(manifest: Manifest, contract: Contract) -> list[str]:
    """Return the services that have HTTP routes."""
    order = _order(manifest, contract) if manifest.edge else []
    return [name for name in order if any(method.routes for method in _methods(manifest, contract, name))]


def _facts(manifest: Manifest, contract: Contract, name: str) -> dict[str, Any]:
    services = served(manifest, contract, name)
    return {
        "serves": [service.name for service in services],
        "calls": sorted({called for service in services for called in service.calls}),
        "publishes": sorted({event for service in services for event in service.publishes}),
        "triggers": {
            f"{method.service}/{method.name}": [str(trigger) for trigger in method.triggers]
            for method in _methods(manifest, contract, name)
            if method.triggers
        },
    }


def _text(manifest: Manifest, contract: Contract) -> str:
    components: dict[str, dict[str, list[str]]] = {}
    for name in _order(manifest, contract):
        facts = _facts(manifest, contract, name)
        triggers = [f"{method} on {', '.join(on)}" for method, on in facts["triggers"].items()]
        components[name] = {**facts, "triggers": triggers}
    if manifest.edge:
        components["edge"] = {"routes to": _routed(manifest, contract)}
    lines = []
    for number, (name, facts) in enumerate(components.items(), 1):
        lines.append(f"{number}. {name}")
        for label, values in facts.items():
            lines += [f"   {label if at == 0 else '':<10} {value}" for at, value in enumerate(values)]
    cycle = event_cycle(manifest, contract)
    if cycle:
        lines += ["", f"events can run in a cycle: {' → '.join(cycle)}; each round counts as a hop"]
    return "\n".join(lines)


def event_cycle(manifest: Manifest, contract: Contract) -> list[str] | None:
    """Return one cycle of services in which an event can lead to itself, or None.

    A cycle is legal; the hop limit bounds it.
    """
    edges: dict[str, list[str]] = {}
    for source, target, label in _arrows(manifest, contract):
        if label or source != "edge":  # a call carries the number of hops, so it can be part of a cycle
            edges.setdefault(source, []).append(target)
    return graph.cycle(edges)


def _json(manifest: Manifest, contract: Contract) -> str:
    needs = dependencies(manifest, contract)
    services = {
        name: {"needs": list(needs[name]), **_facts(manifest, contract, name)} for name in _order(manifest, contract)
    }
    document = {
        "layers": start_order(manifest, contract),
        "services": services,
        "edge": _routed(manifest, contract),
        "event_cycle": event_cycle(manifest, contract) or [],
    }
    return json.dumps(document, indent=2)


def _arrows(manifest: Manifest, contract: Contract) -> Iterator[tuple[str, str, str]]:
    """Yield every arrow: source, target, and the event or table that is sent ("": a call)."""
    order = _order(manifest, contract)
    needs = dependencies(manifest, contract)
    yield from (("edge", name, "") for name in _routed(manifest, contract))
    yield from ((name, need, "") for name in reversed(order) for need in needs[name])
    publishers = {
        name: {event for service in served(manifest, contract, name) for event in service.publishes} for name in order
    }
    for name in order:
        for trigger in (trigger for method in _methods(manifest, contract, name) for trigger in method.triggers):
            match trigger:
                case ChangeTrigger(owner, table):
                    yield owner, name, f"{owner}.{table}"
                case EventTrigger(event):
                    yield from ((source, name, event) for source in order if event in publishers[source])
                case ScheduleTrigger():
                    pass
                case _:
                    assert_never(trigger)


def _nodes(manifest: Manifest, contract: Contract) -> list[str]:
    return [*(["edge"] if manifest.edge else ()), *_order(manifest, contract)]


def _mermaid(manifest: Manifest, contract: Contract) -> str:
    def id_of(name: str) -> str:  # the prefix avoids mermaid's reserved words, such as `end`
        return "n_" + re.sub(r"\W", "_", name)

    lines = ["graph LR", *(f'    {id_of(name)}["{name}"]' for name in _nodes(manifest, contract))]
    for source, target, label in _arrows(manifest, contract):
        arrow = f'-. "{label}" .->' if label else "-->"
        lines.append(f"    {id_of(source)} {arrow} {id_of(target)}")
    return "\n".join(lines)


def _dot(manifest: Manifest, contract: Contract) -> str:
    lines = ["digraph mesh {", "    rankdir=LR;", *(f'    "{name}";' for name in _nodes(manifest, contract))]
    for source, target, label in _arrows(manifest, contract):
        style = f' [style=dashed, label="{label}"]' if label else ""
        lines.append(f'    "{source}" -> "{target}"{style};')
    return "\n".join([*lines, "}"])


FORMATS: Mapping[str, Callable[[Manifest, Contract], str]] = {
    "text": _text,
    "mermaid": _mermaid,
    "dot": _dot,
    "json": _json,
}
"""Formats of ``mesh graph --format``: name → function that prints it. Each raises ``Faults`` for a cycle."""
