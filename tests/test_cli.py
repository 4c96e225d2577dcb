from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mesh import cli

COMMANDS = ["up", "call", "trace", "graph", "check", "generate", "new", "sidecar", "edge", "health", "keys"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"\n  mesh {command}" in capsys.readouterr().out


def test_help_needs_no_heavy_imports() -> None:
    script = (
        "import sys\nfrom mesh.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'grpc', 'h2corn', 'ngh2', 'sqlalchemy', 'opentelemetry.sdk', 'msgspec', 'jwt'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout


def test_the_nearest_manifest_above_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mesh.toml").write_text('protos = ["nowhere"]\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert cli.main(["check"]) == 1
    assert capsys.readouterr().err == f"{tmp_path}/nowhere: this import root of `protos` is not a folder\n"


def test_without_a_manifest_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir("/")  # the only folder that has nothing above it
    assert cli.main(["graph"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("mesh.toml: not found in / or above")
    assert "mesh new NAME" in err


@pytest.mark.parametrize("arguments", [[], ["nope"], ["call"], ["graph", "--format", "png"], ["call", "a", "b", "c"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def test_stubs_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "a.proto").write_text('syntax = "proto3";\npackage a;\nmessage M {}\n')
    (tmp_path / "mesh.toml").write_text("")
    for _ in range(2):
        assert cli.main(["generate", "--file", str(tmp_path)]) == 0
    assert cli.main(["generate", "--force", "--file", str(tmp_path)]) == 0
    told = [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert told == ["generated", "current", "generated"]
    assert (tmp_path / "gen" / "a_pb2.pyi").is_file()


@pytest.mark.parametrize("arguments", [["sidecar", "nobody"], ["edge"], ["trace"]])
def test_what_is_not_there_is_said(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "a.proto").write_text('syntax = "proto3";\npackage a;\nmessage M {}\n')
    (tmp_path / "mesh.toml").write_text("")
    assert cli.main([*arguments, "--file", str(tmp_path)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
