"""Types, as users have them: the sample, the project of ``mesh new`` and the snippets of the documents, from the wheel.

The environment has the built wheel and what it depends on, and nothing else: no stubs of grpcio, for example. It is
made without a network, of links to the packages of the environment that runs the tests.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import cached_packages
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_docs import blocks

from mesh.contract.model import Contract
from mesh.edge.clients import python as generator

ROOT = Path(__file__).parents[2]
TYPED = Path(__file__).parent / "typed"
CACHE = ROOT / ".mesh" / "test-mypy-cache"
SNIPPETS = [text for _, text in blocks("python")]
ERROR = re.compile(r"^\s*(?P<file>[^\s:][^:]*):(?P<line>\d+):.*\berror\b")

Errors = set[tuple[str, int]]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def needed(text: str, found: set[str], extra: str = "") -> None:
    """Add the names of a requirement's distribution and of all that it needs to ``found``."""
    requirement = Requirement(text)
    name = canonicalize_name(requirement.name)
    if name in found or (requirement.marker is not None and not requirement.marker.evaluate({"extra": extra})):
        return
    found.add(name)
    for inner in distribution(name).requires or ():
        for wanted in ("", *requirement.extras):
            needed(inner, found, wanted)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment in which the wheel of this repository is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (wheel,) = folder.glob("function_mesh-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    shutil.unpack_archive(wheel, site, "zip")
    (mesh,) = Distribution.discover(name="function-mesh", path=[str(site)])
    found: set[str] = set()
    for text in (*(mesh.requires or ()), "httpx", "pytest", "typing-extensions"):
        needed(text, found)
    for name in sorted(found):
        for file in distribution(name).files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                link = site / file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(file.locate())))
    assert not (site / "grpc-stubs").exists()
    return python


@pytest.fixture(scope="module")
def project(python: Path, contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project with the sample's services, each snippet as a module, contracts with odd names, and clients."""
    project = tmp_path_factory.mktemp("project")
    for name in ("hello", "dice"):
        run(python, "-m", "mesh", "new", name, "--file", project / "mesh.toml", cwd=project)
    for folder in ("protos", "services"):
        shutil.copytree(ROOT / folder, project / folder, dirs_exist_ok=True)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    dice = re.search(r"<!-- file: protos/dice/v1/dice.proto -->\n```proto\n(.*?)```", text, re.DOTALL)
    assert dice is not None
    player = dice[1].replace("int32 sides = 1;", "int32 sides = 1; string player = 2;")
    player = player.replace("int32 value = 1;", "int32 value = 1; string player = 2;")
    (project / "protos/dice/v1/dice.proto").write_text(player)
    for file in TYPED.glob("*.proto"):
        folder = project / "protos" / ("class" if file.stem == "keyword" else "odd") / "v1"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
    (project / "services/dice/functions.py").unlink()
    for number, snippet in enumerate(SNIPPETS):
        module = "checked" if "import checked" in snippet else f"snippet_{number}"
        if "services.dice.functions import" not in snippet and "The functions of dice" in snippet:
            module = "functions"
        (project / "services/dice" / f"{module}.py").write_text(snippet)
    (project / "tests/test_dice.py").unlink()  # one of the snippets
    for file in TYPED.glob("*.py"):
        shutil.copy(file, project / "services")
    run(python, "-m", "mesh", "generate", cwd=project)
    run(python, "-m", "mesh", "export", "python", "-o", project / "client.py", cwd=project)  # a snippet imports it
    (project / "wide_client.py").write_text(generator.client(contract))
    return project


def mypy(python: Path, project: Path) -> Errors:
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", CACHE, "services", "tests"]
    stubs = sorted(str(stub.relative_to(project)) for stub in project.glob("gen/**/*.pyi"))
    return errors([*command, *(stub for stub in stubs if "/class/" not in stub)], project)


def pyright(python: Path, project: Path) -> Errors:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    program = cached_packages.npm(ROOT / "tests/node/pyright/package.json") / "node_modules/pyright/index.js"
    config = project / "pyproject.toml"
    more = 'include = ["services", "tests", "gen", "client.py", "wide_client.py"]'
    config.write_text(config.read_text().replace('include = ["services", "tests"]', more))
    return errors(["node", program, "--pythonpath", python], project)


def errors(command: list[str | Path], project: Path) -> Errors:
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    found = {
        (Path(match["file"]).name, int(match["line"])) for match in map(ERROR.match, done.stdout.splitlines()) if match
    }
    assert done.returncode == (1 if found else 0), f"{done.stdout}{done.stderr}"
    if found:
        sys.stdout.write(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("check", [mypy, pyright])
def test_the_mistakes_against_the_contract_are_errors_and_nothing_else(
    check: Callable[[Path, Path], Errors], python: Path, project: Path
) -> None:
    lines = (TYPED / "wrong.py").read_text().splitlines()
    seeded = {("wrong.py", number) for number, line in enumerate(lines, 1) if line.endswith("# !")}
    assert len(seeded) == 19
    assert len(SNIPPETS) >= 13
    found = check(python, project)
    assert seeded <= found
    assert {file for file, _ in found} == {"wrong.py"}


@pytest.mark.slow
def test_what_type_checkers_accept_works(python: Path, project: Path) -> None:
    run(python, "-c", "import sys; sys.path.insert(0, 'gen'); import services.use", cwd=project)
