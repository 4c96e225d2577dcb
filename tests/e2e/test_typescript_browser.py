"""A page of another origin in a real browser uses the TypeScript client of the sample mesh."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typescript
from browser import chromium as chromium  # noqa: PLC0414 - a fixture
from mesh_process import Mesh, sample
from selenium.webdriver import Chrome

from mesh import cli

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")

ROOT = Path(__file__).parents[2]
PAGE = """<!doctype html><title>page</title>
<script type="module">import * as client from "./client.js"; window.client = client;</script>
"""
SCRIPT = """
const [edge, name, done] = arguments;
(async () => {
  while (!window.client) await new Promise((resolve) => setTimeout(resolve, 10));
  const { Mesh, MeshError, rules } = window.client;
  const out = {};
  const password = "long enough";
  const anybody = new Mesh({ baseUrl: edge });
  const user = await anybody.registration.register({ name, email: `${name}@example.com`, password });
  out.user = [user.name, user.roles, user.createTime.slice(0, 2)];
  out.taken = await anybody.registration.register({ name, email: "b@example.com", password }).catch((error) => [
    error instanceof MeshError, error.code, error.status, error.message, error.traceId.length,
  ]);
  let tokens = await anybody.login.login({ login: name, password });
  const mesh = new Mesh({
    baseUrl: edge,
    token: tokens.accessToken + "x", // refused, as if it had expired
    refresh: async () => {
      tokens = await mesh.login.refresh({ refreshToken: tokens.refreshToken });
      return tokens.accessToken;
    },
  });
  const twice = await Promise.all([1, 2].map(() => mesh.registration.getUser({ id: "me" })));
  out.me = twice.map((one) => one.id === user.id);
  out.sessions = (await mesh.login.listSessions()).sessions.map((session) => session.current);
  const renamed = await mesh.registration.updateUser({ user: { id: "me", email: `${name}@example.org` } });
  out.email = renamed.email;
  out.forbidden = await mesh.audit.listRecords().catch((error) => error.code);
  const admin = new Mesh({ baseUrl: edge });
  admin.token = (await admin.login.login({ login: "admin", password: "admin's own password" })).accessToken;
  const seen = [];
  const watching = (async () => {
    for await (const record of admin.audit.watchRecords({ userId: user.id, after: "1" })) {
      seen.push(record.event ? record.event.userId ?? record.type : record.change.operation);
      if (seen.length === 3) return;
    }
  })();
  await mesh.registration.deleteUser({ id: user.id });
  await watching;
  out.seen = seen.length;
  out.rule = rules.RegisterRequest.email;
  return out;
})().then(done, (error) => done({ error: `${error} ${error.stack}` }));
"""


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def page(tmp_path: Path) -> Iterator[str]:
    """The page with the compiled client."""
    folder = tmp_path / "page"
    folder.mkdir()
    assert cli.main(["export", "typescript", "--file", str(ROOT / "mesh.toml"), "-o", str(folder / "client.ts")]) == 0
    typescript.compiled(folder / "client.ts", out=folder)
    (folder / "index.html").write_text(PAGE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def mesh(page: str, tmp_path: Path) -> Iterator[Mesh]:
    """The sample mesh, which lets pages of that origin read its responses."""
    running = sample(tmp_path / "state", MESH_EDGE_CORS=page)
    try:
        yield running.ready()
    finally:
        code = running.stop()
    assert code == 0, running.output()


def test_a_page_uses_the_sample_mesh(chromium: Chrome, page: str, mesh: Mesh) -> None:
    chromium.get(page)
    chromium.set_script_timeout(60)
    name = f"eve{secrets.token_hex(4)}"
    found = chromium.execute_async_script(SCRIPT, mesh.edge, name)
    assert "error" not in found, found
    assert found["user"] == [name, [], "20"]
    assert found["taken"] == [True, "ALREADY_EXISTS", 409, "name: this name belongs to another account", 32]
    assert found["me"] == [True, True]
    assert found["sessions"] == [True]
    assert found["email"] == f"{name}@example.org"
    assert found["forbidden"] == "PERMISSION_DENIED"
    assert found["seen"] == 3
    assert found["rule"]["required"] is True
