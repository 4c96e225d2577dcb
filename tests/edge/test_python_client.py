"""Python client: mypy takes it and refuses what the contract does not have, and both classes call edges with it."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import streaming

from mesh.contract import loader, protoc
from mesh.contract.model import Contract
from mesh.edge.clients import python as generator

ROOT = Path(__file__).parents[2]
USE = """
from datetime import datetime
from client import EdgeV1Book, EdgeV1Author, Mesh, NotFound, RULES


def right(mesh: Mesh) -> int:
    book: EdgeV1Book = mesh.library.create_book(title="a", isbn=2**60, genre="POETRY", author=EdgeV1Author(name="b"))
    published: datetime | None = book.published
    for item in mesh.streams.count(count=3):
        print(item.number + 1, item.mood == "GOOD", published, RULES)
    try:
        mesh.library.tag_book(name="n", tags=["t"], timeout=1.5)
    except NotFound as error:
        print(error.violations[0].field, error.trace_id)
    return len(book.tags) + book.isbn


def wrong(mesh: Mesh) -> None:
    mesh.library.create_book(titel="a")
    mesh.library.create_book(isbn="1")
    mesh.library.create_book(genre="DRAMA")
    mesh.library.tag_book(tags=[])
    mesh.library.burn_book()
    print(mesh.library.create_book().author.name)
    print(mesh.streams.count(count=1).number)
"""


@pytest.fixture(scope="module")
def folder(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client of the tests' contract."""
    made = tmp_path_factory.mktemp("python")
    (made / "client.py").write_text(generator.client(contract))
    return made


@pytest.fixture(scope="module")
def client(folder: Path) -> Any:
    """The client as a module."""
    spec = importlib.util.spec_from_file_location("mesh_test_client", folder / "client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_mypy_takes_the_documentation_and_refuses_what_the_contract_does_not_have(folder: Path) -> None:
    (folder / "use.py").write_text(USE)
    sample = loader.read(protoc.load([ROOT / "protos"], ROOT / "gen"))
    (folder / "sample.py").write_text(generator.client(sample))
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    (folder / "script.py").write_text(text.replace("from client import", "from sample import"))
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--no-error-summary",
        "--follow-imports",
        "silent",
    ]
    done = subprocess.run(
        [*command, "client.py", "sample.py", "use.py", "script.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    lines = USE.splitlines()
    wrong = range(lines.index("def wrong(mesh: Mesh) -> None:") + 2, len(lines) + 1)
    found = [line.split(":")[:2] for line in done.stdout.splitlines() if "error:" in line]
    assert sorted(found) == sorted(["use.py", str(number)] for number in wrong), done.stdout


class Both:
    """The blocking or the asynchronous class, with one face: everything is awaited."""

    def __init__(self, client: Any, *, is_async: bool) -> None:
        self._client = client
        self._is_async = is_async

    def open(self, address: str, token: str | None = None, refresh: Callable[[], str | None] | None = None) -> Any:
        if not self._is_async:
            return self._client.Mesh(f"http://{address}/", token=token, refresh=refresh)

        async def refreshed() -> str | None:
            return refresh() if refresh is not None else None

        return self._client.AsyncMesh(f"http://{address}/", token=token, refresh=refreshed if refresh else None)

    async def call(self, method: Any, *arguments: Any, **fields: Any) -> Any:
        if self._is_async:
            return await method(*arguments, **fields)
        return await asyncio.to_thread(method, *arguments, **fields)

    async def all(self, method: Any, *arguments: Any, most: int = 100, **fields: Any) -> list[Any]:
        """Return the items of a stream, and the code of its error as the last one."""
        if not self._is_async:
            return await asyncio.to_thread(self._all, method, arguments, fields, most)
        found: list[Any] = []
        stream: AsyncIterator[Any] = method(*arguments, **fields)
        try:
            async for one in stream:
                found.append(one)
                if len(found) == most:
                    await stream.aclose()  # type: ignore[attr-defined]
                    break
        except self._client.MeshError as error:
            found.append(error.code)
        return found

    def _all(self, method: Any, arguments: Any, fields: Any, most: int) -> list[Any]:
        found: list[Any] = []
        stream = method(*arguments, **fields)
        try:
            for one in stream:
                found.append(one)
                if len(found) == most:
                    stream.close()
                    break
        except self._client.MeshError as error:
            found.append(error.code)
        return found

    async def close(self, mesh: Any) -> None:
        if self._is_async:
            await mesh.aclose()
        else:
            mesh.close()


@pytest.fixture(params=[False, True], ids=["blocking", "async"])
def both(request: pytest.FixtureRequest, client: Any) -> Both:
    return Both(client, is_async=request.param)


async def test_values_and_errors(both: Both, client: Any, running: Any) -> None:
    mesh = both.open(running.address, "ada")
    published = datetime(2026, 1, 31, 12, 0, 0, 5, UTC)
    book = await both.call(
        mesh.library.create_book, title="ü/?&", isbn=2**53 + 1, genre="PROSE", price=float("inf"), cover=b"\0\xff",
        labels={"a": "b"}, published=published, reading_time=timedelta(seconds=-1.5), pages=0, room="r",
        author=client.EdgeV1Author(name="n", born=3), tags=["x"],
    )  # fmt: skip
    assert (book.title, book.isbn, book.genre, book.cover) == ("ü/?&", 2**53 + 1, "PROSE", b"\0\xff")
    assert (book.price, book.labels, book.published) == (float("inf"), {"a": "b"}, published)
    assert (book.reading_time, book.pages, book.room, book.number) == (timedelta(seconds=-1.5), 0, "r", None)
    assert book.author == client.EdgeV1Author(name="n", born=3)
    assert await both.call(mesh.library.create_book) == client.EdgeV1Book()
    fields = {"author": client.EdgeV1Author(born=5), "in_print": True, "tags": ["x", "y"]}
    path = await both.call(mesh.library.get_book, name="shelves/a b/books/ü?", **fields)
    assert (path.name, path.author.born, path.in_print, path.tags) == ("shelves/a b/books/ü?", 5, True, ["x", "y"])
    sent = client.EdgeV1Book(name="books/1", title="t")
    assert await both.call(mesh.library.update_book, book=sent, reason="r") == "t"
    assert [one.title for one in await both.call(mesh.library.tag_book, name="books/n", tags=["a", "b"])] == ["a", "b"]
    with pytest.raises(client.InvalidArgument, match="cannot be part of a path"):
        await both.call(mesh.library.tag_book, name="books/..")
    with pytest.raises(client.InvalidArgument, match="two things are wrong") as wrong:
        await both.call(mesh.library.behave, title="violations")
    assert {one.field: one.description for one in wrong.value.violations} == {"name": "must be short", "tags[0]": "bad"}
    assert (wrong.value.status, len(wrong.value.trace_id)) == (400, 32)
    with pytest.raises(client.ResourceExhausted) as busy:
        await both.call(mesh.library.behave, title="busy")
    assert busy.value.retry_after == 3
    with pytest.raises(ValueError, match="has no time zone"):
        await both.call(mesh.library.create_book, published=published.replace(tzinfo=None))
    await both.close(mesh)
    nowhere = both.open("127.0.0.1:1")
    with pytest.raises(client.Unavailable):
        await both.call(nowhere.library.create_book)
    await both.close(nowhere)


async def test_a_token_that_is_refused_is_replaced_once(both: Both, client: Any, running: Any) -> None:
    refreshed: list[str] = []

    def refresh() -> str:
        refreshed.append("admin")
        return "admin"

    mesh = both.open(running.address, "forged", refresh)
    await asyncio.gather(*(both.call(mesh.library.list_secrets) for _ in range(3)))
    assert (refreshed, mesh.token) == (["admin"], "admin")
    await both.close(mesh)
    stranger = both.open(running.address, "forged")
    with pytest.raises(client.Unauthenticated):
        await both.call(stranger.library.list_secrets)
    await both.close(stranger)


async def test_streams_and_bytes(both: Both, client: Any, contract: Contract) -> None:
    async with streaming.edge(contract, "process") as running:
        mesh = both.open(running.address)
        streams = mesh.streams
        items = await both.all(streams.count, room="u\u2028\n", count=3)
        assert [(one.room, one.number, one.mood) for one in items] == [("u\u2028\n", n, "GOOD") for n in (1, 2, 3)]
        assert len(await both.all(streams.count, count=-1, most=2)) == 2
        await asyncio.wait_for(running.seen.cancelled.wait(), 10)
        assert await both.all(streams.count, count=1, fail="first") == ["NOT_FOUND"]
        assert (await both.all(streams.count, count=1, fail="last"))[1:] == ["FAILED_PRECONDITION"]
        texts = [client.Item(room="a/b", text=text) for text in ("x", "y")]
        assert await both.call(streams.gather, texts) == client.Total(items=2, text="xy", room="a/b")
        assert [one.text for one in await both.all(streams.chat, texts)] == ["x", "y"]
        file = client.HttpBody(content_type="image/png", data=b"7" * 50000)
        saved = await both.call(streams.put, name="f", file=file)
        assert (saved.name, saved.content_type, saved.size) == ("f", "image/png", 50000)
        large = client.HttpBody(data=b"7" * 200_000)
        assert (await both.call(streams.put_large, name="f", file=large)).size == 200_000
        assert (await both.call(streams.raw, client.HttpBody(content_type="text/plain", data=b"a"))).data == b"a"
        assert sum(map(len, await both.all(streams.get_large, count=3, size=10))) == 3 * 65536
        with pytest.raises(client.DeadlineExceeded):
            await both.call(streams.put_large, name="stuck", file=file, timeout=0.1)
        await both.close(mesh)
