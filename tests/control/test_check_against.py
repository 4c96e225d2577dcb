"""``mesh check --against``: commits and compiled files, and what is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.config import manifest
from mesh.contract import loader
from mesh.contract.model import Contract
from mesh.control import project
from mesh.control.commands import check_against, export, new
from mesh.faults import Faults

ROOT = Path(__file__).parent.parent.parent


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A project in a folder of a repository, with one commit."""
    folder = tmp_path / "repository" / "app"
    folder.mkdir(parents=True)
    assert new.run(folder / "mesh.toml", "shop") == 0
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-qm", "one")
    return folder


def loaded(folder: Path) -> tuple[manifest.Manifest, Contract]:
    found = manifest.load(folder / "mesh.toml")
    return found, loader.read(project.compile_contract(found))


def edit(folder: Path, before: str, after: str) -> None:
    file = folder / "protos/shop/v1/shop.proto"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def check(folder: Path, ref: str, output: str = "text") -> int:
    return check_against.run(*loaded(folder), ref, output)


def test_a_commit_a_file_and_every_format(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(shop.parent))
    assert check(shop, "HEAD") == 0
    assert "ok: no breaking change against HEAD\n" in capsys.readouterr().out
    assert export.contract(loaded(shop)[1], shop / "old.binpb") == 0
    edit(shop, '"/v1/shop/{name}"', '"/v2/shop/{name}"')
    git(shop, "add", ".")
    git(shop, "commit", "-qm", "two")
    capsys.readouterr()

    assert check(shop, "HEAD") == 0
    capsys.readouterr()
    for ref in ("HEAD~1", str(shop / "old.binpb")):
        assert check(shop, ref) == check_against.BROKEN
        first, *_, last = capsys.readouterr().out.splitlines()
        assert first.startswith(
            "shop/v1/shop.proto:11: ROUTE_REMOVED shop.v1.Shop/Greet: the route GET /v1/shop/{name} "
        )
        assert 'option (meshapi.v1.accepted_breaks) = { rule: "ROUTE_REMOVED" element: "shop.v1.Shop/Greet"' in last

    assert check(shop, "HEAD~1", "github") == check_against.BROKEN
    line = capsys.readouterr().out
    assert line.startswith(
        "::error file=app/protos/shop/v1/shop.proto,line=11,title=ROUTE_REMOVED::shop.v1.Shop/Greet: "
    )
    assert len(line.splitlines()) == 1

    option = (
        'option (meshapi.v1.accepted_breaks) = { rule: "ROUTE_REMOVED" element: "shop.v1.Shop/Greet" reason: "100%" };'
    )
    edit(shop, "package shop.v1;\n", f"package shop.v1;\n{option}\n")
    assert check(shop, "HEAD~1", "json") == 0
    found = json.loads(capsys.readouterr().out)
    [one] = found["breaks"]
    assert (one["rule"], one["accepted"], one["line"]) == ("ROUTE_REMOVED", "100%", 12)
    assert one["file"] == "app/protos/shop/v1/shop.proto"
    assert check(shop, "HEAD~1", "github") == 0
    line = capsys.readouterr().out
    assert line.startswith("::notice file=app/protos/shop/v1/shop.proto,line=12,")
    assert line.endswith("; accepted: 100%25\n")


def test_a_contract_that_cannot_be_read(shop: Path) -> None:
    def reason(ref: str) -> str:
        with pytest.raises(Faults) as caught:
            check(shop, ref)
        return str(caught.value)

    assert reason("nothing").startswith("nothing: neither a file nor a commit of this repository")
    assert reason("--help").startswith("--help: neither a file nor a commit of this repository")
    assert reason("no.binpb") == "no.binpb: no such file; `mesh export contract -o FILE` writes one"
    (shop / "text.binpb").write_text("no descriptors")
    assert "not a compiled contract (FileDescriptorSet)" in reason(str(shop / "text.binpb"))
    git(shop, "mv", "mesh.toml", "other.toml")
    git(shop, "commit", "-qm", "without")
    git(shop, "mv", "other.toml", "mesh.toml")
    assert reason("HEAD") == "HEAD: this commit has no app/mesh.toml; name one that has it"
    git(shop, "commit", "-qm", "with")
    edit(shop, "string name = 1;", "string name = ;")
    git(shop, "add", ".")
    git(shop, "commit", "-qm", "broken")
    edit(shop, "string name = ;", "string name = 1;")
    assert reason("HEAD").startswith("HEAD:protos/shop/v1/shop.proto:19: ")


def test_import_roots_that_are_not_committed_are_those_of_the_disk(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "vendored/money").mkdir(parents=True)
    money = 'syntax = "proto3"; package money; message Amount { int64 cents = 1; }'
    (shop / "vendored/money/amount.proto").write_text(money)
    (shop / ".gitignore").write_text("vendored/\n")
    text = (shop / "mesh.toml").read_text()
    (shop / "mesh.toml").write_text(text.replace('protos = ["protos"]', 'protos = ["protos", "vendored"]'))
    edit(shop, "string text = 1;", "string text = 1;\n  money.Amount amount = 2;")
    edit(shop, 'import "meshapi', 'import "money/amount.proto";\nimport "meshapi')
    git(shop, "add", ".")
    git(shop, "commit", "-qm", "money")
    assert check(shop, "HEAD") == 0
    assert "ok: no breaking change" in capsys.readouterr().out


def test_routes_of_a_lambda_function_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its service has no .proto file: it is built from the documents that the commit has."""
    for name in ("mesh.toml", "api.json", "handler.py"):
        (tmp_path / name).write_text((ROOT / "services/hello" / name).read_text())
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    assert check(tmp_path, "HEAD") == 0
    api = json.loads((tmp_path / "api.json").read_text())
    api["paths"]["/moved"] = api["paths"].pop("/hello")
    (tmp_path / "api.json").write_text(json.dumps(api))
    assert check(tmp_path, "HEAD") == check_against.BROKEN
    assert "ROUTE_REMOVED functions.v1.Hello/Invoke: the route GET /hello is gone" in capsys.readouterr().out


def test_the_command(shop: Path) -> None:
    """Exit codes as `--help` says them, and faults in the format of a workflow."""

    def mesh(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "mesh", "check", "--file", str(shop), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=shop.parent)

    edit(shop, "seconds: 5", "seconds: 4")
    done = mesh("--against", "HEAD")
    assert done.returncode == 3, done.stderr
    assert "TIMEOUT_CUT shop.v1.Shop/Greet: it had a timeout of 5 s and has a timeout of 4 s now" in done.stdout
    edit(shop, "seconds: 4", "seconds: -4")
    done = mesh("--against", "HEAD", "--format", "github")
    assert done.returncode == 1
    assert done.stdout.startswith("::error file=app/protos/shop/v1/shop.proto,line=11,title=mesh check::")
    assert mesh("--format", "html").returncode == 2
