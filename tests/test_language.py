"""The language of the code and its documentation, as far as a program can tell (docs/glossary.md, CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import io
import itertools
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECTS = {"endings"}
"""Folders of mesh/ that hold a project of their own: services have files of the same names."""
MODULES = sorted(file.relative_to(ROOT) for folder in ("mesh", "services") for file in (ROOT / folder).rglob("*.py"))
PAGES = sorted(
    file.relative_to(ROOT)
    for file in [
        ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md",
        *(ROOT / "docs").glob("*.md"), *(ROOT / "protos").rglob("*.proto"),
    ]
    if file.name != "glossary.md"  # it names the words
)  # fmt: skip

CLAUSE = re.compile(r"(?:What|Who|Whom|Whose|How|Which|When|Where|Why|That|And|But|Because)\b")
"""A first word that is no noun and no verb."""
SECONDS = re.compile(r"_(?:TIMEOUT|INTERVAL|DELAY|AGE|SECONDS)S?$")
BYTES = re.compile(r"_(?:BYTES|SIZE)$")
VAGUE = re.compile(r"(?:^|_)(?:PATIENCE|LAST_WORDS|GOODBYE|SOON|AGAIN|ALIVE)(?:_|$)")
"""Names of constants that say no quantity."""

_A = r"(?:an?|the|its|their|no|each|this|every|one|whole|first|last|of)"
REPLACED = {
    rf"\b{_A} room\b|\b[Rr]ooms\b": "package",
    r"\b[Dd]oors?\b": "layer, or listener",
    r"(?<![Dd]ead )(?<!dead_)\bletters?\b(?!, digits)": "dead letter",
    r"\b[Ss]trikes?\b|\bstruck\b": "kill",
    r"\b(?:[Nn]ursery|[Cc]rew)\b": "spawner, lifecycle",
    r"\blanes?\b": "connection, or partition",
    rf"\b{_A} answers?\b": "response",
    rf"\b{_A} (?:try|tries)\b": "attempt",
    r"\bentr(?:y|ies) of mesh\.toml\b": "service",
    r"\bthe go\b": "start signal",
    r"\bwho(?:ever)? asks?\b": "caller",
    r"\bwhat (?:was|is) asked\b": "request",
    r"\b[Hh]ouse\b": "package, or project",
}
"""Words of prose, and what the glossary has for them."""


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def docstrings(file: Path) -> Iterator[tuple[int, str, str]]:
    """(line, name, text) of a module's docstring, and of those of its classes and functions."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), getattr(node, "name", file.name), text


def constants(file: Path) -> Iterator[tuple[int, str, str]]:
    """(line, name, text) of each constant of a module or a class that has a docstring below it."""
    bodies = [node.body for node in ast.walk(tree_of(file)) if isinstance(node, ast.Module | ast.ClassDef)]
    for body in bodies:
        for node, below in itertools.pairwise(body):
            if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
                continue
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            for target in targets:
                for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(name, ast.Name) and re.fullmatch(r"_?[A-Z][A-Z0-9_]*", name.id):
                        yield node.lineno, name.id, str(below.value.value)


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring and comment, as one line; of each paragraph of a page, without code."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.suffix != ".py":
        if file.suffix == ".proto":
            text = "\n".join(line.partition("//")[2] for line in text.splitlines())
        blank = lambda found: "\n" * found[0].count("\n")  # noqa: E731 - keeps the line numbers
        text = re.sub(r"^```.*?^```$", blank, text, flags=re.DOTALL | re.MULTILINE)
        line = 1
        for paragraph in re.split(r"(?<=\n)\n", text):
            yield line, " ".join(paragraph.split())
            line += paragraph.count("\n") + 1
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree_of(file)):
        body = getattr(node, "body", None)
        for child in body if isinstance(body, list) else ():
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                yield child.lineno, " ".join(child.value.value.split())


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_a_docstring_starts_with_a_noun_or_a_verb(file: Path) -> None:
    found = [*docstrings(file), *constants(file)]
    assert [f"{file}:{line} {name}: {text[:60]}" for line, name, text in found if CLAUSE.match(text)] == []


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_a_constant_says_its_unit(file: Path) -> None:
    faults = []
    for line, name, text in constants(file):
        if text.startswith("Seconds") and not SECONDS.search(name):
            faults.append(f"{file}:{line} {name} is in seconds")
        if text.startswith("Bytes") and not BYTES.search(name):
            faults.append(f"{file}:{line} {name} is in bytes")
        if VAGUE.search(name):
            faults.append(f"{file}:{line} {name} names no quantity")
    assert faults == []


@pytest.mark.parametrize("file", [*MODULES, *PAGES], ids=str)
def test_the_words_are_those_of_the_glossary(file: Path) -> None:
    faults = [
        f"{file}:{line}: {found[0]!r}, not {word!r}"
        for line, text in prose(file)
        for pattern, word in REPLACED.items()
        if (found := re.search(pattern, re.sub(r"``[^`]*``|`[^`]*`", "", text)))
    ]
    assert faults == []


@pytest.mark.parametrize("kind", ["class", "file"])
def test_a_name_stands_for_one_thing(kind: str) -> None:
    where: dict[str, set[str]] = defaultdict(set)
    for file in MODULES:
        if file.parts[0] != "mesh" or PROJECTS & set(file.parts):
            continue
        if kind == "file" and file.name != "__init__.py":
            where[file.name].add(str(file))
        elif kind == "class":
            for node in tree_of(file).body:
                if isinstance(node, ast.ClassDef):
                    where[node.name].add(str(file))
    assert {name: sorted(files) for name, files in where.items() if len(files) > 1} == {}


def test_the_replaced_words_are_found() -> None:
    """A pattern that can find nothing holds nothing."""
    examples = [
        "the room", "a door", "its letter", "a strike", "the crew", "a lane", "the answer", "each try",
        "an entry of mesh.toml", "wait for the go", "whoever asks", "what is asked", "of the house",
    ]  # fmt: skip
    for example in examples:
        assert any(re.search(pattern, example) for pattern in REPLACED), example
    assert all(any(re.search(pattern, example) for example in examples) for pattern in REPLACED)
    assert not any(re.search(pattern, "a dead letter in a package; try it again") for pattern in REPLACED)
