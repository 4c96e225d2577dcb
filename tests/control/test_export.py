"""``mesh export openapi``, ``typescript`` and ``python``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from mesh import cli

SAMPLE = str(Path(__file__).parent.parent.parent / "mesh.toml")


def test_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["export", "openapi", "--file", SAMPLE, "--title", "Accounts", "--server", "https://a.example"]) == 0
    )
    made = json.loads(capsys.readouterr().out)
    OpenAPIV31SpecValidator(made).validate()
    assert made["info"]["title"] == "Accounts"
    assert made["servers"] == [{"url": "https://a.example"}]
    assert set(made["paths"]["/v1/users/{id}"]) == {"get", "patch", "delete"}


def test_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "openapi.json"
    assert cli.main(["export", "openapi", "--file", SAMPLE, "--out", str(out), "--api-version", "1.4"]) == 0
    assert json.loads(out.read_text())["info"]["version"] == "1.4"
    assert capsys.readouterr().out == f"{out}: 19 operations\n"


@pytest.mark.parametrize(("name", "head"), [("typescript", "// Client of"), ("python", '"""Client of')])
def test_clients(name: str, head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", name, "--file", SAMPLE]) == 0
    text = capsys.readouterr().out
    assert text.startswith(head)
    out = tmp_path / "client"
    assert cli.main(["export", name, "--file", SAMPLE, "-o", str(out)]) == 0
    assert out.read_text() == text


def test_to_a_file_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "nowhere" / "openapi.json"
    assert cli.main(["export", "openapi", "--file", SAMPLE, "--out", str(out)]) == 1
    assert capsys.readouterr().err == f"{out}: cannot be written: No such file or directory\n"
