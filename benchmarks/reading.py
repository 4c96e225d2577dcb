"""Figures about how the code reads: sizes, names, the modules that a request passes through, the words of the prose.

    python -m benchmarks.reading [--root CHECKOUT] [--static]

Prints a table in Markdown. ``--root`` measures another checkout with its own ``.venv``; two runs give before and after.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tokenize
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

LONG_FUNCTION = 60
"""Lines beyond which a function is counted as long."""
COMPONENTS = 4
"""Processes of the sample mesh that answer: the edge and three sidecars."""
AVOIDED = ("what", "which", "how")
FIELD = ("request", "response", "timeout")
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
SAMPLE = """
import os, sys, threading, time
_flag, _out = os.environ["READING_FLAG"], os.environ["READING_OUT"]
_name = next((word for word in sys.argv if word in ("sidecar", "edge")), None)
_name = sys.argv[sys.argv.index(_name) + 1] if _name == "sidecar" else _name
_on, _seen = False, set()

def _profile(frame, event, argument):
    if _on and event == "call":
        _seen.add(frame.f_globals.get("__name__", ""))

def _poll():
    global _on
    while True:
        on = os.path.exists(_flag)
        before, _on = _on, on
        if before and not on:
            with open(os.path.join(_out, _name + ".seen"), "w") as file:
                file.write("\\n".join(sorted(name for name in list(_seen) if name.split(".")[0] == "mesh")))
        if on and not before:
            _seen.clear()
            open(os.path.join(_out, _name + ".begun"), "w").close()
        time.sleep(0.01)

if _name is not None:
    threading.setprofile(_profile)
    sys.setprofile(_profile)
    _thread = threading.Thread(target=_poll, daemon=True)
    _thread.start()
"""
"""``sitecustomize`` of the components: notes the modules of mesh whose functions are called while a file exists."""


def sources(root: Path) -> dict[str, ast.Module]:
    files = sorted((root / "mesh").rglob("*.py"))
    return {str(file.relative_to(root)): ast.parse(file.read_text()) for file in files}


def package_of(file: str) -> str:
    parts = Path(file).parts
    return "mesh" if len(parts) == len(("mesh", "module.py")) else ".".join(parts[:2])


def sizes(root: Path, trees: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    lines = {file: len((root / file).read_text().splitlines()) for file in trees}
    yield "modules", str(len(lines))
    yield "modules at the top level", str(sum(package_of(file) == "mesh" for file in lines))
    most = Counter(str(Path(file).parent) for file in lines).most_common(1)[0]
    yield "most modules in one folder", f"{most[1]} ({most[0]})"
    largest = max(lines, key=lines.__getitem__)
    yield "median module, lines", f"{statistics.median(lines.values()):g}"
    yield "largest module, lines", f"{lines[largest]} ({largest})"
    functions = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = sum(length > LONG_FUNCTION for length in functions)
    yield f"functions over {LONG_FUNCTION} lines", f"{long} of {len(functions)}"


def doubles(trees: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    files, classes = defaultdict(list), defaultdict(set)
    for file, tree in trees.items():
        if "endings" in Path(file).parts:  # a project of its own
            continue
        if Path(file).name != "__init__.py":
            files[Path(file).name].append(file)
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                classes[node.name].add(file)
    for kind, found in (("file", files), ("class", classes)):
        twice = sorted(name for name, where in found.items() if len(where) > 1)
        yield f"{kind} names that stand twice or more", f"{len(twice)} ({', '.join(twice) or 'none'})"


def prose(file: Path) -> str:
    """Return the docstrings and comments of a module, or the text of a page without its code."""
    text = file.read_text()
    if file.suffix == ".md":
        return re.sub(r"```.*?```|`[^`]*`|^    .*$", " ", text, flags=re.DOTALL | re.MULTILINE)
    if file.suffix == ".proto":
        return " ".join(re.findall(r"//(.*)", text))
    comments = [
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
    ]
    docstrings = [
        child.value.value
        for node in ast.walk(ast.parse(text))
        for child in (node.body if isinstance(getattr(node, "body", None), list) else ())
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant) and isinstance(child.value.value, str)
    ]
    return re.sub(r"``[^`]*``|`[^`]*`", " ", "\n".join([*comments, *docstrings]))


def words(root: Path) -> Iterator[tuple[str, str]]:
    places = {
        "docstrings and comments of mesh/": [*(root / "mesh").rglob("*.py")],
        "README, docs/, protos/": [
            root / "README.md",
            *(root / "docs").glob("*.md"),
            *(root / "protos").rglob("*.proto"),
        ],
    }
    for place, files in places.items():
        counted = Counter(word.lower() for file in files for word in WORD.findall(prose(file)))
        total = sum(counted.values())
        for kind, chosen in (("/".join(AVOIDED), AVOIDED), ("/".join(FIELD), FIELD)):
            # Plurals count: "responses" is the word too.
            number = sum(counted[word] + counted[f"{word}s"] for word in chosen)
            yield f"“{kind}” per 1,000 words, {place}", f"{1000 * number / total:.1f}"


@contextlib.contextmanager
def sample_mesh(root: Path, folder: Path) -> Iterator[str]:
    """Run a copy of the sample mesh of a checkout; yields the URL of its edge."""
    python = root / ".venv" / "bin" / "python"
    (folder / "sitecustomize.py").write_text(SAMPLE)
    project = folder / "project"
    project.mkdir()
    for name in ("protos", "services"):
        (project / name).symlink_to(root / name)
    (project / "mesh.toml").write_text(re.sub(r':(\d{4})"', ':0"', (root / "mesh.toml").read_text()))
    environment = os.environ | {
        "PYTHONPATH": str(folder), "READING_FLAG": str(folder / "on"), "READING_OUT": str(folder / "out"),
    }  # fmt: skip
    (folder / "out").mkdir()
    with subprocess.Popen(
        [python, "-m", "mesh", "up"], cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as mesh:
        try:
            state = project / ".mesh" / "up.json"
            while not (state.exists() and '"edge": "http' in state.read_text()):
                if mesh.poll() is not None:
                    sys.exit(f"`mesh up` of {root} ended with {mesh.returncode}")
                time.sleep(0.1)
            yield json.loads(state.read_text())["edge"]
        finally:
            mesh.send_signal(signal.SIGTERM)


def post(url: str, body: dict[str, str]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request) as response:  # noqa: S310 - of this machine
        response.read()


def passed(root: Path) -> Iterator[tuple[str, str]]:
    """Count the modules whose functions run for one login and for the deliveries of one registration."""
    with tempfile.TemporaryDirectory() as name, sample_mesh(root, folder := Path(name)) as edge:
        account = {"password": "correct horse battery staple", "name": "Ada"}

        def await_files(pattern: str) -> None:
            while len(list((folder / "out").glob(pattern))) < COMPONENTS:
                time.sleep(0.05)
            time.sleep(0.2)

        def seen(user: str, *, register: bool) -> dict[str, set[str]]:
            for file in (folder / "out").iterdir():
                file.unlink()
            (folder / "on").touch()
            await_files("*.begun")
            if register:
                post(f"{edge}/v1/users", account | {"name": user.partition("@")[0], "email": user})
                time.sleep(3)  # the deliveries
            else:
                post(f"{edge}/v1/sessions", {"login": user, "password": account["password"]})
            (folder / "on").unlink()
            await_files("*.seen")
            return {file.stem: set(file.read_text().split()) for file in (folder / "out").glob("*.seen")}

        seen("first@example.com", register=True)  # what is loaded and compiled once
        seen("first@example.com", register=False)
        login = seen("first@example.com", register=False)
        yield "modules that one HTTP request passes through, edge", str(len(login["edge"]))
        yield "modules that one HTTP request passes through, sidecar", str(len(login["login"]))
        event = seen("second@example.com", register=True)
        yield "modules that one delivered event passes through, sidecar", str(len(event["audit"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="a checkout; this one by default")
    parser.add_argument("--static", action="store_true", help="start no mesh")
    options = parser.parse_args()
    root = options.root.resolve()
    trees = sources(root)
    figures = [*sizes(root, trees), *doubles(trees), *words(root), *(() if options.static else passed(root))]
    print("| figure | value |\n| --- | --- |")
    for name, value in figures:
        print(f"| {name} | {value} |")
    packages = Counter(map(package_of, trees))
    print("\nModules per package:", ", ".join(f"{name} {number}" for name, number in sorted(packages.items())))


if __name__ == "__main__":
    main()
