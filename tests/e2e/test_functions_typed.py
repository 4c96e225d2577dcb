"""Type check of docs/functions.md: its Python snippets against the built wheel, as a user's mypy sees it.

The environment has the wheel, and the dependencies of the environment that runs the tests. It is made without a
network: a ``.pth`` file adds the ``site-packages`` of the running environment to the path. Python does not read the
``.pth`` files of a folder that was added by one, so the editable install of this repository is not on the path.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from test_docs import blocks

ROOT = Path(__file__).parent.parent.parent
SNIPPETS = [text for document, text in blocks("python") if document == "functions.md"]
DICE = """syntax = "proto3";

package dice.v1;

import "google/api/annotations.proto";

service Dice {
  rpc Roll(RollRequest) returns (Rolled);
  rpc SumAll(stream Rolled) returns (Rolled);
  rpc Double(stream Rolled) returns (stream Rolled);
}

message RollRequest {
  int32 sides = 1;
}

message Rolled {
  int32 value = 1;
}
"""
LOGIN = """syntax = "proto3";

package login.v1;

service Login {
  rpc GetKeys(GetKeysRequest) returns (Keys);
}

message GetKeysRequest {}

message Keys {
  repeated string keys = 1;
}
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment in which the wheel of this repository is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (wheel,) = folder.glob("function_mesh-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, *install, wheel, cwd=folder)
    purelib = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def project(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project: a contract, its stubs, and each snippet as a module of its own."""
    project = tmp_path_factory.mktemp("project")
    for name, text in {"dice": DICE, "login": LOGIN}.items():
        folder = project / "protos" / name / "v1"
        folder.mkdir(parents=True)
        (folder / f"{name}.proto").write_text(text)
    (project / "mesh.toml").touch()
    run(python, "-m", "mesh", "generate", cwd=project)
    for number, text in enumerate(SNIPPETS, 1):
        (project / f"snippet_{number}.py").write_text(text)
    return project


@pytest.mark.slow
def test_mesh_is_imported_from_the_wheel_and_is_typed(python: Path, project: Path) -> None:
    folder = Path(run(python, "-c", "import mesh; print(mesh.__path__[0])", cwd=project).strip())
    assert python.parent.parent in folder.parents
    assert (folder / "py.typed").is_file()


@pytest.mark.slow
def test_the_snippets_of_the_guide_are_strictly_typed(python: Path, project: Path) -> None:
    assert len(SNIPPETS) >= 7
    (project / "mypy.ini").write_text("[mypy]\nstrict = true\nmypy_path = gen\n")
    names = sorted(path.name for path in project.glob("snippet_*.py"))
    assert run(python, "-m", "mypy", *names, cwd=project).startswith("Success")


@pytest.mark.slow
def test_a_wrong_type_is_found(python: Path, project: Path) -> None:
    """``mesh`` is not ``Any`` to the type checker."""
    (project / "wrong.py").write_text(
        "from mesh import Context\n\n\nasync def roll(request: object, context: Context) -> int:\n"
        "    return context.remaining()\n"
    )
    done = subprocess.run(
        [python, "-m", "mypy", "--strict", "wrong.py"], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert 'Incompatible return value type (got "float | None", expected "int")' in done.stdout
