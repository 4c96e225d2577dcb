"""The documents say what is: commands, targets, links, keys and snippets, checked against the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

import mesh
from mesh import cli, errors
from mesh.config import manifest
from mesh.contract.breaks.break_rules import RULES

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
        *(ROOT / "docs").glob("*.md"),
    ]
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """(document, text) of each block of a language."""
    return [
        (path.name, text)
        for path in DOCUMENTS
        for found, text in BLOCK.findall(path.read_text(encoding="utf-8"))
        if found == language
    ]


def table(document: str, mark: str) -> list[list[str]]:
    """The cells of the rows of the table below ``<!-- mark -->``."""
    _, _, after = (ROOT / document).read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    assert after, f"{document} has no table {mark}"
    rows = after.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_the_table_of_breaking_changes_is_complete() -> None:
    said = {rule.strip("`"): text for rule, text in table("docs/compatibility.md", "breaks")}
    assert said == dict(RULES)


def test_every_command_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    named = {
        word
        for path in DOCUMENTS
        for word in re.findall(r"(?:`|\$ |[^/\w]bin/)mesh ([a-z]+)", path.read_text(encoding="utf-8"))
    }
    assert {"up", "new", "call", "trace", "check"} <= named
    for name in sorted(named):
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0, name
    capsys.readouterr()


def test_every_path_that_is_named_exists() -> None:
    for path in DOCUMENTS:
        if path.name == "CHANGELOG.md":  # it names what was
            continue
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"`((?:mesh|tests|benchmarks)/[\w./-]*)`", text))
        assert {name for name in named if not (ROOT / name).exists()} == set(), path.name


def test_every_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        named = set(re.findall(r"(?:`|\$ )make ([a-z]+)", path.read_text(encoding="utf-8")))
        assert named <= targets, f"{path.name}: {named - targets}"


def test_every_link_leads_somewhere() -> None:
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_table_of_keys_is_complete_and_has_the_defaults() -> None:
    tables = [table(name, "keys") for name in ("README.md", "docs/workers.md", "docs/lambda.md", "docs/events.md")]
    said = {key: default for rows in tables for key, default, _ in rows}
    kinds = {
        "": manifest.ManifestFile,
        "[edge] ": manifest.EdgeConfig,
        "[auth] ": manifest.AuthConfig,
        "[events] ": manifest.EventsConfig,
        "[keys] ": manifest.KeysConfig,
        "[tls] ": manifest.TlsFiles,
        "[services.NAME] ": manifest.ServiceConfig,
        "workers.": manifest.WorkersConfig,
    }
    expected = {}
    for prefix, kind in kinds.items():
        for field in msgspec.structs.fields(kind):
            if prefix or field.name not in ("edge", "auth", "events", "keys", "services"):
                expected[f"`{prefix}{field.encode_name}`"] = field
    assert set(said) == set(expected)
    for key, field in expected.items():
        if key == "`[services.NAME] address`":  # where it listens, unless told
            continue
        if field.required:
            assert said[key] == "required", key
            continue
        if field.default is None:
            assert said[key] == "none", key
            continue
        default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        written = tomllib.loads(f"value = {said[key].strip('`')}")["value"]
        if isinstance(default, msgspec.Struct):  # a table of its own, or the short form of one
            assert not written, key
            continue
        if isinstance(default, manifest.Duration | manifest.Size):
            written = type(default).parse(written)
        assert written == (list(default) if isinstance(default, tuple) else default), key


def test_the_table_of_errors_is_complete_and_right() -> None:
    said = {
        name: int(status)
        for names, status in table("docs/functions.md", "errors")
        for name in re.findall(r"`(\w+)`", names)
    }
    classes = {name: getattr(mesh, name) for name in mesh.__all__ if isinstance(getattr(mesh, name), type)}
    expected = {
        name: errors.http_status(kind.code)
        for name, kind in classes.items()
        if issubclass(kind, errors.StatusError) and kind is not errors.StatusError
    }
    assert said == expected


def test_every_variable_of_telemetry_that_the_code_names_is_described() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mesh" / "telemetry").glob("*.py"))
    named = set(re.findall(r'"(OTEL_[A-Z_]+[A-Z])"', code))
    assert "OTEL_SDK_DISABLED" in named
    assert [name for name in sorted(named) if name not in text] == []


GUIDES = [(name, text) for name, text in blocks("python") if name in ("README.md", "functions.md")]


@pytest.mark.parametrize(("document", "text"), GUIDES)
def test_python_parses_and_uses_public_names(document: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "mesh":
            missing = [alias.name for alias in node.names if alias.name not in (*mesh.__all__, "testing")]
            assert not missing, f"{document}: {missing}"


def test_the_functions_of_the_guide_lint_as_they_stand(tmp_path: Path) -> None:
    for at, (_, text) in enumerate(GUIDES):
        (tmp_path / f"snippet_{at}.py").write_text(text)
    rules = ["--isolated", "--select", "E,F", "--ignore", "E402", "--line-length", "120"]
    command = [sys.executable, "-m", "ruff", "check", *rules, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("document", "text"), [block for block in blocks("toml") if "[tool." not in block[1]])
def test_toml_is_a_table_of_mesh_toml(document: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text(text)
    (tmp_path / "services").symlink_to(ROOT / "services")
    assert manifest.load(tmp_path / "mesh.toml", {}).services, document
