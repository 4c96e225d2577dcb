"""The import picture of pyproject.toml refuses what it should: a contract that nothing can break holds nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUBMODULES = sorted(
    {f"mesh.{file.relative_to(ROOT / 'mesh').parts[0].removesuffix('.py')}" for file in (ROOT / "mesh").rglob("*.py")}
    - {"mesh.__init__", "mesh.__main__"}
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what import-linter looks at."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("mesh", "services"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def lint(project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=project, text=True, capture_output=True, check=False,
    )  # fmt: skip


def test_a_service_imports_nothing_of_the_mesh_but_its_names_and_testing(project: Path) -> None:
    lines = [f"import {name}  # noqa" for name in SUBMODULES]
    (project / "services" / "login" / "nosy.py").write_text("\n".join(["import mesh", *lines, ""]))
    done = lint(project)
    assert done.returncode == 1
    refused = {name for name in SUBMODULES if f"services.login.nosy -> {name} (" in done.stdout}
    assert refused == set(SUBMODULES) - {"mesh.testing"}


@pytest.mark.parametrize(
    ("module", "imports"),
    [
        ("mesh/rpc/client/nosy.py", "mesh.rpc.server.listener"),
        ("mesh/rpc/server/nosy.py", "mesh.rpc.client.target"),
        ("mesh/events/publish/nosy.py", "mesh.events.consume.ordering"),
        ("mesh/events/consume/nosy.py", "mesh.events.publish.relay"),
        ("mesh/events/broker/nosy.py", "mesh.events.publish.outbox"),
        ("mesh/edge/http/nosy.py", "mesh.edge.grpc.passthrough"),
        ("mesh/edge/grpc/nosy.py", "mesh.edge.openapi.document"),
        ("mesh/edge/openapi/nosy.py", "mesh.edge.http.router"),
        ("mesh/edge/lambda_http/nosy.py", "mesh.edge.http.router"),
        ("mesh/edge/layers/nosy.py", "mesh.edge.http.router"),
        ("mesh/control/component/nosy.py", "mesh.control.supervise.supervisor"),
        ("mesh/control/supervise/nosy.py", "mesh.control.commands.up"),
        ("mesh/control/commands/nosy.py", "mesh.chaos"),
        ("mesh/edge/nosy.py", "mesh.sidecar"),
        ("mesh/events/hops.py", "mesh.rpc"),
        ("mesh/contract/nosy.py", "mesh.config"),
        ("mesh/call.py", "mesh.layers"),
        ("mesh/sidecar/nosy.py", "services.login.functions"),
        ("mesh/auth/nosy.py", "h2corn"),
    ],
)
def test_a_wall_holds(project: Path, module: str, imports: str) -> None:
    file = project / module
    file.write_text((file.read_text() if file.exists() else "") + f"\nimport {imports}  # noqa\n")
    done = lint(project)
    assert done.returncode == 1
    assert imports in done.stdout


def test_a_new_module_has_to_be_placed(project: Path) -> None:
    (project / "mesh" / "unplaced.py").touch()
    done = lint(project)
    assert done.returncode == 1
    assert "- mesh.unplaced" in done.stdout


def test_it_is_kept_today(project: Path) -> None:
    done = lint(project)
    assert done.returncode == 0, done.stdout
