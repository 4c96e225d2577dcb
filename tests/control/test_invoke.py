from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from mesh import cli
from mesh.control.commands.invoke import documents


def call(*arguments: str) -> int:
    return cli.main(["call", *arguments])


def test_a_unary_call_is_json_in_and_out(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(server, "conformance.v1.Echo/Unary", "-d", '{"text": "a", "payload": "aGk="}') == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"text": "a", "payload": "aGk=", "index": "0"}
    assert err == ""


@pytest.mark.parametrize("name", ["Echo/Unary", "v1.Echo/Unary", "/conformance.v1.Echo/Unary"])
def test_a_short_name_will_do(server: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(server, name) == 0
    assert json.loads(capsys.readouterr().out)["text"] == ""


def test_responses_of_a_stream_are_lines(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(server, "Echo/ServerStream", "-d", '{"count": 2}') == 0
    assert [json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()] == ["0", "1"]


@pytest.mark.parametrize(("data", "text"), [('{"text": "a"} {"text": "b"}', "a,b"), ("", "")])
def test_a_stream_of_requests_is_several_documents(
    server: str, data: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(server, "Echo/ClientStream", "-d", data) == 0
    assert json.loads(capsys.readouterr().out)["text"] == text


def test_requests_come_from_standard_input_line_by_line(
    server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "a"}\n\n{"text": "b"}\n'))
    assert call(server, "Echo/Bidi", "-d", "@-") == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["a", "b"]


def test_a_request_comes_from_a_file(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "request.json").write_text('{"text": "from a file"}')
    assert call(server, "Echo/Unary", "-d", f"@{tmp_path}/request.json") == 0
    assert json.loads(capsys.readouterr().out)["text"] == "from a file"


def test_an_error_shows_code_message_and_details(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(server, "Echo/Unary", "-d", '{"fail": {"code": 3, "message": "too long"}}') == 64 + 3
    out, err = capsys.readouterr()
    assert out == ""
    first, _, details = err.partition("\n")
    assert first == "INVALID_ARGUMENT: too long"
    assert json.loads(details) == {
        "@type": "google.rpc.BadRequest",
        "fieldViolations": [{"field": "text", "description": "must be shorter"}],
    }


def test_what_came_before_an_error_is_shown(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(server, "Echo/ServerStream", "-d", '{"count": 1, "fail": {"message": "gone"}}') == 64 + 5
    out, err = capsys.readouterr()
    assert json.loads(out)["index"] == "0"
    assert err == "NOT_FOUND: gone\n"


def test_metadata_goes_both_ways(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(server, "Echo/Unary", "-H", "X-Echo-A-bin: aGk=", "--token", "secret", "-v") == 0
    err = capsys.readouterr().err.splitlines()
    assert "< x-echo-a-bin: aGk=" in err
    assert "<< x-user: Bearer secret" in err
    assert err[-1] == "status OK"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["Nope/Unary"], "there is no service 'Nope'; there is conformance.v1.Echo"),
        (["Echo/Nope"], "conformance.v1.Echo has no method 'Nope'; it has Unary, Idempotent"),
        (["Echo"], "expected SERVICE/METHOD"),
        (["Echo/Unary", "-d", "{"], "-d: not JSON"),
        (["Echo/Unary", "-d", '{"nope": 1}'], 'has no field named "nope"'),
        (["Echo/Unary", "-d", "{} {}"], "conformance.v1.Echo.Unary takes one request, not 2"),
        (["Echo/ClientStream", "-d", '{"text": 1}'], "the request is no conformance.v1.EchoRequest"),
        (["Echo/Unary", "-d", "@/no/such/file"], "/no/such/file cannot be read: No such file or directory"),
        (["Echo/Unary", "-H", "nope"], "expected KEY:VALUE"),
        (["Echo/Unary", "-H", "a-bin: %"], "the value of a -bin key is base64"),
    ],
)
def test_what_cannot_be_called_is_said(
    server: str, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(server, *arguments) == 1
    assert line in capsys.readouterr().err


def test_nobody_there_is_unavailable(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("127.0.0.1:1", "Echo/Unary") == 64 + 14
    assert capsys.readouterr().err.startswith("UNAVAILABLE: ")


def test_a_service_is_found_in_the_manifest(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text(f'[services.echo]\nmodule = "m"\nserves = ["conformance.v1.Echo"]\nlisten = "{server}"\n')
    assert call("Echo/Unary", "--file", str(file)) == 0
    assert call("Other/Unary", "--file", str(file)) == 1
    assert "there is no service 'Other'; there is conformance.v1.Echo" in capsys.readouterr().err


def test_nobody_there_because_the_mesh_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('[services.echo]\nmodule = "m"\nserves = ["conformance.v1.Echo"]\nlisten = "127.0.0.1:1"\n')
    assert call("Echo/Unary", "--file", str(file)) == 64 + 14
    assert capsys.readouterr().err.endswith(f"{file}: the mesh does not run here; start it with `mesh up`\n")


def test_a_free_port_is_known_only_while_the_mesh_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('[services.echo]\nmodule = "m"\nserves = ["conformance.v1.Echo"]\n')
    assert call("Echo/Unary", "--file", str(file)) == 1
    assert "`mesh up` does not run; give the address" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "values"), [("", []), (" 1 {} \n[2]", [1, {}, [2]]), ('"a""b"', ["a", "b"])])
def test_documents_stand_one_after_the_other(text: str, values: list[object]) -> None:
    assert list(documents(text)) == values


def test_health_is_an_exit_code(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", server]) == 0
    assert cli.main(["health", "127.0.0.1:1"]) == 1
    assert cli.main(["health", "http://127.0.0.1:1"]) == 1
    assert cli.main(["health", "nope", "--file", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{server}: SERVING"
    assert lines[1].startswith("127.0.0.1:1: UNAVAILABLE: ")
    assert lines[2].startswith("http://127.0.0.1:1: UNAVAILABLE: ")
