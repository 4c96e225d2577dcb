from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mesh import cli

COMMANDS = [
    "up",
    "call",
    "trace",
    "graph",
    "check",
    "generate",
    "new",
    "sidecar",
    "edge",
    "health",
    "keys",
    "apikeys create",
    "apikeys list",
    "apikeys revoke",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
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
        assert f"\n    {command.split()[0]} " in done.stdout


def test_the_nearest_manifest_above_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mesh.toml").write_text('protos = ["nowhere"]\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert cli.main(["check"]) == 1
    fault = f"mesh.toml:1: protos: {tmp_path}/nowhere: this import root of `protos` is not a folder\n"
    assert capsys.readouterr().err == fault


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


def run(project: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **options.pop("environment", {})}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        [sys.executable, "-m", "mesh", *words, "--file", str(project)], env=environment, check=False, **output
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose folder, comments and texts are no ASCII."""
    folder = tmp_path / "mü llér"
    (folder / "protos" / "a" / "v1").mkdir(parents=True)
    (folder / "a.py").write_text("async def get(request, context):\n    return request\n")
    (folder / "mesh.toml").write_text('[services.a]\nmodule = "a"\nserves = ["a.v1.A"]\n')
    (folder / "protos" / "a" / "v1" / "a.proto").write_text(
        'syntax = "proto3";\npackage a.v1;\nimport "google/api/annotations.proto";\n'
        'import "meshapi/v1/annotations.proto";\n'
        "// Für alle: 日本.\nmessage Ask { string name = 1; }\n"
        'service A { rpc Get(Ask) returns (Ask) { option (google.api.http) = { get: "/get" }; '
        "option (meshapi.v1.method) = { access: PUBLIC }; } }\n"
    )
    return folder


@pytest.mark.parametrize(
    "command", ["check", "graph", "graph --format json", "export openapi", "export asyncapi", "generate", "keys"]
)
def test_a_terminal_that_takes_ascii_only_gets_all_of_it(project: Path, command: str) -> None:
    done = run(project, *command.split(), environment={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("ascii")
    if "openapi" in command:
        assert "Für alle: 日本." in json.dumps(json.loads(done.stdout), ensure_ascii=False)


def test_a_reader_that_has_gone_is_no_traceback(project: Path) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    done = run(project, "check", stdout=writable)
    os.close(writable)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_said(project: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(project, "check", stdout=full)
    assert (done.returncode, done.stderr) == (
        1,
        b"standard output, or a file of the mesh, cannot be written: No space left on device\n",
    )


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="no folder that nobody can write here")
def test_a_folder_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", "dice", "--file", "/sys/mesh.toml"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("/sys/protos/dice/v1/dice.proto: cannot be written: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("-H", "x: ü"), "-H 'x: ü': metadata 'x' may hold only printable ASCII"),
        (("-H", "x y: 1"), "-H 'x y: 1': metadata key 'x y' may hold only digits"),
        (("--token", "a\nb"), "--token: metadata 'authorization' may hold only printable ASCII"),
    ],
)
def test_a_header_that_cannot_be_sent_is_named(project: Path, words: tuple[str, str], place: str) -> None:
    done = run(project, "call", "127.0.0.1:1", "a.v1.A/Get", *words, environment={"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 1
    assert done.stderr.decode().startswith(place)


def test_secrets_are_set_listed_and_removed_and_never_shown(project: Path) -> None:
    with (project / "mesh.toml").open("a") as end:
        end.write('[services.a.settings]\nkey = { secret = "key" }\nother = { secret = "other" }\n')
    done = run(project, "secrets", "list")
    assert (done.returncode, [line.split() for line in done.stdout.decode().splitlines()[-2:]]) == (
        1,
        [["key", "a", "nowhere"], ["other", "a", "nowhere"]],
    )
    assert run(project, "secrets", "set", "key", input=b"correct horse\n").returncode == 0
    assert run(project, "secrets", "set", "spare", input=b"battery").returncode == 0
    done = run(project, "secrets", "list", environment={"MESH_SECRET_OTHER": "staple"})
    assert [" ".join(line.split()) for line in done.stdout.decode().splitlines()[-3:]] == [
        "key a mesh secrets",
        "other a environment variable MESH_SECRET_OTHER",
        "spare not used mesh secrets",
    ]
    assert done.returncode == 0
    shown = done.stdout + done.stderr
    assert not any(word in shown for word in (b"horse", b"battery", b"staple"))
    assert run(project, "secrets", "remove", "spare").returncode == 0
    for words, given, reason in (
        (("remove", "spare"), b"", "no such secret was set here"),
        (("set", "key"), b"", "expected the secret, got nothing"),
        (("set", "a/b"), b"x", "expected letters, digits"),
    ):
        done = run(project, "secrets", *words, input=given)
        assert (done.returncode, reason in done.stderr.decode()) == (1, True), done.stderr


def test_api_keys_are_created_listed_and_revoked_and_shown_once(project: Path) -> None:
    file = project / "protos" / "a" / "v1" / "a.proto"
    text = file.read_text(encoding="utf-8").replace("access: PUBLIC", 'access: KEY scopes: "a:read"')
    file.write_text(text, encoding="utf-8")
    done = run(project, "apikeys", "create", "ci", "--scope", "a:read", "--expires", "90d", "--rate", "9/s burst 20")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"mesh_")
    key = done.stdout.strip()
    assert run(project, "apikeys", "create", "old", "--expires", "0s").returncode == 0
    done = run(project, "apikeys", "list")
    rows = [line.split() for line in done.stdout.decode().splitlines()[-2:]]
    assert [row[:3] for row in rows] == [["ci", "a:read", "9/s"], ["old", "none", "none"]]
    assert rows[1][-1] == "(expired)"
    assert key not in done.stdout
    for words, reason in (
        (("create", "ci"), "ci: there is a key of this name"),
        (("create", "A b"), "NAME: expected lower-case letters"),
        (("create", "b", "--scope", "a:write"), "no method of the contract has the scope 'a:write'; there are: a:read"),
        (("create", "b", "--expires", "soon"), "--expires: expected a duration such as"),
        (("create", "b", "--rate", "fast"), "--rate: expected a rate such as"),
        (("revoke", "b"), "b: there is no such key"),
    ):
        done = run(project, "apikeys", *words)
        assert (done.returncode, reason in done.stderr.decode()) == (1, True), done.stderr
    assert run(project, "apikeys", "revoke", "ci").returncode == 0
    assert run(project, "apikeys", "revoke", "old").returncode == 0
    assert run(project, "apikeys", "list").stdout == b"there are no API keys\n"
