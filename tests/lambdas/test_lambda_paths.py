"""The table of paths in docs/lambda.md: each line is a request to a real edge, and what the handler sees of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lambda_project import ROOT, Project, edged

ECHO = "def handler(event, context): return event"
VERSIONS = {"REST": None, "HTTP 1.0": "1.0", "HTTP 2.0": "2.0"}


def rows() -> list[list[str]]:
    text = (ROOT / "docs" / "lambda.md").read_text(encoding="utf-8")
    lines = text.partition("<!-- paths -->\n")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def project(folder: Path, api: str, routes: list[str]) -> Project:
    """A function that has the routes, said by the document that AWS's tools would export."""
    kind = api.partition(",")[0]
    if kind == "URL":
        return Project(folder, ECHO, 'events = "d.json"', {"d.json": {"url": True}})
    paths: dict[str, Any] = {}
    for route in routes:
        verb, _, path = route.rpartition(" ")
        key = verb.lower() if verb not in ("ANY", "") else "x-amazon-apigateway-any-method"
        integration = {"type": "aws_proxy", **({"payloadFormatVersion": VERSIONS[kind]} if VERSIONS[kind] else {})}
        operation = {"x-amazon-apigateway-integration": integration}
        paths.setdefault("/$default" if path == "$default" else path, {})[key] = operation
    document = {"openapi": "3.0.1", "servers": [{"url": base} for base in codes(api)], "paths": paths}
    return Project(folder, ECHO, 'openapi = "d.json"', {"d.json": document})


def seen(event: Any, name: str) -> Any:
    """What stands in an event at a path of names; None if nothing does. The names of headers have no dots here."""
    for part in name.split("."):
        event = event.get(part) if isinstance(event, dict) else None
    return event


@pytest.mark.parametrize(("api", "routes", "request_", "expected", "known"), rows())
async def test_a_line_of_the_table(
    tmp_path: Path, api: str, routes: str, request_: str, expected: str, known: str
) -> None:
    assert known.startswith(("docs", "recorded", "reported", "here: "))
    [line, *pairs] = codes(request_)
    verb, path = line.split(" ")
    headers: dict[str, str] = {}
    for pair in pairs:
        name, value = pair.split(": ")
        headers[name] = f"{headers[name]}\n{value}" if name in headers else value
    async with edged(project(tmp_path, api, codes(routes))) as client:
        reply = await client.ask(verb, path, **headers)
    [said] = codes(expected)
    if said.isdigit():
        assert reply.status == int(said)
        return
    assert reply.status == 200, reply.body
    wanted = json.loads(said)
    assert {name: seen(reply.json, name) for name in wanted} == wanted


def test_the_table_has_every_kind_of_api() -> None:
    assert {row[0].partition(",")[0] for row in rows()} == {*VERSIONS, "URL"}
