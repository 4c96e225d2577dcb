"""TypeScript client: the compiler refuses what the contract does not have, and Node calls edges with it."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import streaming
import typescript

from mesh.contract import loader, protoc
from mesh.contract.model import Contract
from mesh.edge.clients import typescript as generator

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


@pytest.fixture(scope="module")
def client(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client of the tests' contract, compiled together with a file that uses it right and wrong."""
    folder = tmp_path_factory.mktemp("typescript")
    (folder / "package.json").write_text('{ "type": "module" }')
    (folder / "client.ts").write_text(generator.client(contract))
    shutil.copy(typescript.FOLDER / "use.ts", folder)
    typescript.compiled(folder / "client.ts", folder / "use.ts", out=folder)
    return folder / "client.js"


def test_the_snippet_of_the_documentation(tmp_path: Path) -> None:
    sample = loader.read(protoc.load([ROOT / "protos"], ROOT / "gen"))
    (tmp_path / "client.ts").write_text(generator.client(sample))
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    (tmp_path / "page.ts").write_text(text.partition("```ts\n")[2].partition("```")[0])
    typescript.compiled(tmp_path / "client.ts", tmp_path / "page.ts", out=tmp_path)


async def node(script: Path, *arguments: object) -> dict[str, Any]:
    pipe = asyncio.subprocess.PIPE
    command = ["node", "--experimental-websocket", "--no-warnings", script, *arguments]
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=pipe, stderr=pipe)
    try:
        out, error = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, error.decode()
    found: dict[str, Any] = json.loads(out)
    return found


async def test_calls_of_every_kind(contract: Contract, client: Path, running: Any) -> None:
    async with streaming.edge(contract, "process") as streams:
        seen = await node(typescript.FOLDER / "use.mjs", client, running.address, streams.address)
        await asyncio.wait_for(streams.seen.cancelled.wait(), 10)  # the loop that was left early
    assert_values(seen)
    assert_errors(seen)
    assert_streams(seen)


def assert_values(seen: dict[str, Any]) -> None:
    """Values arrive as they were sent, and what a response leaves out has its default."""
    echo = seen["echo"]
    assert (echo["title"], echo["isbn"], echo["genre"], echo["cover"]) == ("ü/?&", "9007199254740993", "PROSE", "AP8=")
    assert (seen["nan"], echo["published"], echo["pages"]) == (True, "2026-01-31T12:00:00Z", 0)
    assert (echo["room"], echo["author"], echo["labels"]) == ("r", {"name": "n", "born": 0}, {"a": "b"})
    assert "number" not in echo
    assert seen["empty"] == {
        "name": "", "title": "", "isbn": "0", "inPrint": False, "genre": "GENRE_UNSPECIFIED", "cover": "", "price": 0,
        "tags": [], "genres": [], "labels": {}, "editors": [], "printings": [], "weight": 0,
    }  # fmt: skip
    path = seen["path"]
    assert (path["name"], path["tags"]) == ("shelves/a b/books/ü?", ["x", "y"])
    assert (path["author"]["born"], path["inPrint"]) == (5, True)
    assert seen["body"] == "t"
    assert [book["title"] for book in seen["list"]] == ["a", "b"]


def assert_errors(seen: dict[str, Any]) -> None:
    """Errors have code, status and details; a token that was refused is replaced once for all calls."""
    assert seen["dots"]["message"] == 'name: "books/.." cannot be part of a path'
    assert (seen["wrong"]["code"], seen["wrong"]["status"], seen["wrong"]["trace"]) == ("INVALID_ARGUMENT", 400, 32)
    assert {one["field"]: one["description"] for one in seen["wrong"]["violations"]} == {
        "name": "must be short", "tags[0]": "bad",
    }  # fmt: skip
    assert (seen["busy"]["code"], seen["busy"]["retryAfter"]) == ("RESOURCE_EXHAUSTED", 3)
    assert (seen["late"]["code"], seen["stopped"]["code"]) == ("DEADLINE_EXCEEDED", "CANCELLED")
    assert (seen["nowhere"]["code"], seen["nowhere"]["status"]) == ("UNAVAILABLE", 0)
    assert (seen["refreshed"], seen["refreshes"]) == (["ok", "ok", "ok"], [1, "admin"])
    assert (seen["forged"]["code"], seen["forged"]["status"]) == ("UNAUTHENTICATED", 401)


def assert_streams(seen: dict[str, Any]) -> None:
    """Streams and bytes in both directions."""
    assert [(item["number"], item["mood"], item["text"]) for item in seen["count"]] == [
        (str(number), "GOOD", "") for number in (1, 2, 3)
    ]
    assert {item["room"] for item in seen["count"]} == {"u\u2028\n"}
    assert (seen["some"], seen["first"], seen["last"][1:]) == (2, ["NOT_FOUND"], ["FAILED_PRECONDITION"])
    assert seen["gather"] == {"items": 2, "text": "xy", "room": "a/b"}
    assert (seen["put"]["contentType"], seen["put"]["size"], seen["large"]) == ("image/png", "50000", "200000")
    assert (seen["raw"], seen["pieces"]) == (["text/plain", "ñ"], 3 * 65536)
    assert [item["text"] for item in seen["chat"]] == ["a", "b"]
    assert seen["refused"] == ["NOT_FOUND"]
