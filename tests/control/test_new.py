"""Project of ``mesh new``: it is started and called as its README describes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from mesh import cli
from mesh.control import deployment, project

MESH = [sys.executable, "-m", "mesh"]
FREE = {"MESH_EDGE_LISTEN": "127.0.0.1:0", "MESH_SERVICES_HELLO_LISTEN": "127.0.0.1:0"}


def new(folder: Path, name: str) -> int:
    # Said, not looked for: somebody's mesh.toml may stand above the folder of the tests.
    return cli.main(["new", name, "--file", str(folder / "mesh.toml")])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_second_service_is_added_and_the_users_formatting_stays(folder: Path) -> None:
    assert new(folder, "hello") == 0
    manifest = folder / "mesh.toml"
    manifest.write_text(manifest.read_text() + "# mine, without a final newline")
    assert new(folder, "good_bye") == 0
    text = manifest.read_text()
    assert "# mine, without a final newline\n\n[services.good_bye]\n" in text
    assert 'listen = "127.0.0.1:9102"' in text
    assert 'serves = ["good_bye.v1.GoodBye"]' in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Hello", "lower-case letters"),
        ("class", "lower-case letters"),
        ("edge", "taken by the mesh itself"),
        ("json", "a Python package already"),
        ("grpc", "a Python package already"),
    ],
)
def test_a_name_that_cannot_be_a_package_is_refused(
    folder: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new(folder, name) == 1
    assert text in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "services" / "hello").mkdir(parents=True)
    (folder / "services" / "hello" / "functions.py").write_text("mine")
    assert new(folder, "hello") == 1
    assert capsys.readouterr().err == "services/hello/functions.py: exists already; nothing was written\n"
    assert not (folder / "mesh.toml").exists()


def test_mesh_check_has_no_warning(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # `load` puts the stubs of hello there
    assert new(folder, "hello") == 0
    capsys.readouterr()
    found, contract = project.load(folder / "mesh.toml")
    assert deployment.warnings(found, contract) == []


def buf(*arguments: str | Path, folder: Path) -> None:
    tool = Path(sys.executable).parent / "buf"
    done = subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_buf_lints_it_and_its_manifest_fits_the_schema(folder: Path) -> None:
    assert new(folder, "hello") == 0
    buf("lint", folder=folder)
    text = (folder / "mesh.toml").read_text()
    schema = text.partition("\n")[0].removeprefix("#:schema ")
    validator = jsonschema.Draft7Validator(json.loads((folder / schema).read_text()))
    validator.validate(tomllib.loads(text))
    (folder / "protos/hello/v1/hello.proto").write_text('syntax = "proto3";\npackage hello.v2;\n')
    with pytest.raises(AssertionError, match=r"hello\.v2.*directory"):
        buf("lint", folder=folder)


def test_export_protos_writes_the_imports_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # `load` puts the stubs of hello there
    assert new(folder, "hello") == 0
    made = {path: path.read_bytes() for path in folder.glob("third_party/**/*.proto")}
    for path in made:
        path.unlink()
    capsys.readouterr()
    assert cli.main(["export", "protos", "third_party"]) == 0
    assert capsys.readouterr().out == f"third_party: {len(made)} files\n"
    assert made == {path: path.read_bytes() for path in folder.glob("third_party/**/*.proto")}
    assert folder / "third_party/google/protobuf/descriptor.proto" in made
    assert cli.main(["export", "protos", "protos/imports"]) == 1
    assert "lies in the import root" in capsys.readouterr().err
    (folder / "file").touch()
    assert cli.main(["export", "protos", "file"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_its_test_passes(folder: Path) -> None:
    assert new(folder, "hello") == 0
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.fixture
def running(folder: Path) -> Iterator[subprocess.Popen[str]]:
    assert new(folder, "hello") == 0
    process = subprocess.Popen([*MESH, "up"], cwd=folder, env={**os.environ, **FREE}, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_it_runs_and_answers(running: subprocess.Popen[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert running.stdout is not None
    edge = ""
    for line in running.stdout:
        if "The mesh is ready at" in line:
            edge = line.split()[-1]
            break
    assert edge
    with urllib.request.urlopen(f"{edge}/v1/hello/Ada", timeout=10) as answer:  # noqa: S310 - the mesh that was just started
        assert json.load(answer) == {"text": "Hello, Ada!"}
    capsys.readouterr()
    assert cli.main(["call", "Hello/Greet", "-d", '{"name": "Bob"}']) == 0
    assert json.loads(capsys.readouterr().out) == {"text": "Hello, Bob!"}
    assert cli.main(["health"]) == 0
    assert capsys.readouterr().out == "hello: SERVING\nedge: SERVING\n"
    assert cli.main(["up"]) == 1
    assert f"this mesh runs already (pid {running.pid}); stop it first" in capsys.readouterr().err
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0
    assert cli.main(["trace"]) == 1
    assert "the mesh does not run" in capsys.readouterr().err
