"""Built-in pages of the edge, over real sockets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mesh.contract import loader, protoc
from mesh.contract.model import Contract
from mesh.edge.openapi.document import document
from mesh.edge.openapi.pages import STATIC, BuiltinPages


async def test_the_document(running: Any, contract: Contract) -> None:
    reply = await running.request("GET", "/openapi.json")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json == document(contract)


async def test_it_is_sent_once_to_who_keeps_it(running: Any) -> None:
    etag = (await running.request("GET", "/openapi.json")).headers["etag"]
    for asked in (etag, f'"x", W/{etag}', "*"):
        reply = await running.request("GET", "/openapi.json", headers={"if-none-match": asked})
        assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", etag)
    other = await running.request("GET", "/openapi.json", headers={"if-none-match": '"other"'})
    assert other.status == 200


async def test_head(running: Any) -> None:
    whole = await running.request("GET", "/openapi.json")
    head = await running.request("HEAD", "/openapi.json")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/docs/docs.js"])
async def test_another_verb(running: Any, path: str) -> None:
    reply = await running.request("POST", path, b"{}", {"content-type": "application/json"})
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
    assert reply.json["code"] == 12


async def test_the_page_and_all_that_it_needs_come_from_the_edge(running: Any) -> None:
    page = await running.request("GET", "/docs")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    needed = set(re.findall(r'(?:src|href)="([^"#]+)"', page.body.decode()))
    assert {"docs/docs.js", "docs/docs.css", "openapi.json"} <= needed
    for file in (*needed, *(f"docs/{one.name}" for one in STATIC.iterdir())):
        assert (await running.request("GET", f"/{file}")).status == 200


async def test_the_page_runs_nothing_but_its_own_files(running: Any) -> None:
    page = await running.request("GET", "/docs")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    text = page.body.decode()
    assert re.findall(r"<script(?![^>]*\ssrc=)", text) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", text) == []


async def test_a_slash_at_the_end(running: Any) -> None:
    reply = await running.request("GET", "/docs/")
    assert (reply.status, reply.headers["location"]) == (308, "../docs")


async def test_nothing_else_is_there(running: Any) -> None:
    for path in ("/docs/nothing.js", "/docs/../app.py", "/docs/%2e%2e/app.py"):
        assert (await running.request("GET", path)).status == 404


async def test_a_route_of_the_contract_wins(tmp_path: Path) -> None:
    (tmp_path / "own.proto").write_text("""syntax = "proto3";
package own.v1;
import "google/api/annotations.proto";
service Own { rpc Docs(Empty) returns (Empty) { option (google.api.http) = { get: "/docs" }; } }
message Empty {}
""")
    pages = BuiltinPages(loader.read(protoc.load([tmp_path], tmp_path / "out")))
    assert "/docs" not in pages.handlers
    assert "/openapi.json" in pages.handlers


async def test_the_pages_pass_the_chain_like_every_request(running):
    reply = await running.request("GET", "/openapi.json")
    assert reply.headers["x-trace-id"]
    refused = await running.request("POST", "/openapi.json")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    assert refused.headers["x-trace-id"]
