"""The README, followed: its files are written, its commands run, and what it prints is what comes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mesh_process import ROOT, Mesh

from mesh import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
MARKED = re.compile(r"^<!-- (walk|file): (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {(kind, name): text for kind, name, text in MARKED.findall(README)}
FILES = {name: text for (kind, name), text in BLOCKS.items() if kind == "file"}
VALUES = re.compile(r"\b[0-9a-f]{8,}\b|\d+(?:\.\d+)?|[─ ]+")
"""What is another in each run: ids, numbers and times, and the width of columns that follows from them."""


def steps(walk: str) -> list[tuple[str, str]]:
    """(command, what the README says that it prints) of a walk."""
    text = BLOCKS["walk", walk].replace("\\\n", " ")
    return [tuple(part.split("\n", 1)) for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]  # type: ignore[misc]


def alike(said: str, printed: str) -> bool:
    """Whether all that is said was printed, in this order; ``…`` stands for anything."""
    at, text = 0, plain(printed)
    for part in said.split("…"):
        found = text.find(plain(part), at)
        if found < 0:
            return False
        at = found + len(plain(part))
    return True


def plain(text: str) -> str:
    return VALUES.sub(lambda match: " " if match[0][0] in "─ " else "0", text).strip()


class Shell:
    """A bash for one user: variables that a command sets are there for the next."""

    def __init__(self, folder: Path, mesh: Mesh | None) -> None:
        self.folder = folder
        self.mesh = mesh
        self.variables = ""
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name, command in {"mesh": "-m mesh", "python": "", "python3": ""}.items():
            (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
            (bin_folder / name).chmod(0o755)
        tools = Path(sys.executable).parent
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_"))}
        self.environ = {**outside, "PATH": f"{bin_folder}:{tools}:{os.environ['PATH']}", "COLUMNS": "120"}

    def run(self, command: str) -> str:
        """Return what it prints; the address and the ids of the README become those of the mesh."""
        if self.mesh is not None:
            command = command.replace("localhost:8080", self.mesh.edge.removeprefix("http://"))
        if re.match(r"mesh trace [0-9a-f]{8}$", command):
            first = [row for row in self.run("mesh trace").splitlines() if "POST /v1/users" in row][-1]
            command = f"mesh trace {first[:8]}"
        assigned = re.match(r"([A-Z]+)=\$\(", command)
        script = f"{self.variables}\n{command}"
        if assigned:
            script += f'\necho "${assigned[1]}"'
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if assigned:
            self.variables += f"{assigned[1]}='{done.stdout.strip()}'"
            return ""
        return done.stdout


def follow(shell: Shell, walk: str) -> None:
    for command, said in steps(walk):
        printed = shell.run(command)
        if command.startswith("mesh trace"):  # spans arrive a little later than answers, and nobody announces them
            until = time.monotonic() + 20
            while not alike(said, printed) and time.monotonic() < until:
                printed = shell.run(command)
        assert alike(said, printed), f"$ {command}\nthe README says:\n{said}\nthe mesh printed:\n{printed}"


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The sample mesh in a folder of its own."""
    shutil.copy(ROOT / "mesh.toml", tmp_path)
    for name in ("protos", "services"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@contextmanager
def running(project: Path) -> Iterator[Shell]:
    free = {f"MESH_SERVICES_{name}_LISTEN": "127.0.0.1:0" for name in ("REGISTRATION", "LOGIN", "AUDIT", "DICE")}
    if not (project / "services" / "dice").exists():
        free.pop("MESH_SERVICES_DICE_LISTEN")
    mesh = Mesh(project / "mesh.toml", project / ".mesh", {"MESH_EDGE_LISTEN": "127.0.0.1:0", **free})
    try:
        yield Shell(project, mesh.ready())
    finally:
        assert mesh.stop() == 0, mesh.output()


def write(project: Path, *names: str) -> None:
    for name in names:
        (project / name).write_text(FILES[name])


@needs_curl
def test_the_first_five_minutes(project: Path) -> None:
    with running(project) as shell:
        assert alike(re.sub(r"(?m)^\S+ +│.*\n|…\n", "", steps("up")[0][1]), shell.mesh.output())
        follow(shell, "requests")
        follow(shell, "refusals")
        follow(shell, "commands")


@needs_curl
def test_a_function_of_your_own(project: Path) -> None:
    assert cli.main(["new", "dice", "--file", str(project / "mesh.toml")]) == 0
    said = FILES["none"].replace("9104", "")
    assert said.split("listen")[0] in (project / "mesh.toml").read_text()
    write(project, "protos/dice/v1/dice.proto", "services/dice/functions.py", "tests/test_dice.py")
    with running(project) as shell:
        follow(shell, "dice")
        assert "1 passed" in shell.run("python -m pytest tests/test_dice.py")


def test_stubs_for_another_language(project: Path) -> None:
    write(project, "buf.gen.yaml")
    shell = Shell(project, None)
    follow(shell, "stubs")
    made = {path.relative_to(project / "out").as_posix() for path in (project / "out").rglob("*_pb2*")}
    assert {"login/v1/login_pb2.py", "login/v1/login_pb2_grpc.py", "login/v1/login_pb2.pyi"} <= made


def test_the_comparison_can_fail() -> None:
    assert alike("took 3.0 ms …\nid 0a1b2c3d4e", "more\ntook  12.5 ms by x\nid ffffffffff")
    assert not alike("took 3.0 ms …\nid 0a1b2c3d4e", "took 12.5 ms")
    assert not alike("a … b", "b a")
