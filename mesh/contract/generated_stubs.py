"""gRPC stubs as protoc writes them → valid Python where the contract uses its keywords. Pure.

protoc escapes keywords in the modules of messages, and not in those of gRPC stubs: a method ``lambda``, a service or a
message ``None``, a folder ``class/`` make a file that Python cannot read.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable

__all__ = ["escaped"]

_ANY = "|".join(keyword.kwlist)
_NAME = re.compile(rf"(?:\b(?:self|servicer)\.|^    def |^class )(?:{_ANY})\b(?=[ ,(:])", re.MULTILINE)
"""A method or service by its own name."""
_TYPE = re.compile(r"\b(?P<module>\w+_pb2)(?P<path>(?:\.\w+)+)(?=\.(?:SerializeToString|FromString)\b)")
_IMPORT = re.compile(r"^from (?P<package>[\w.]+) import (?P<module>\w+) as (?P<alias>\w+)$", re.MULTILINE)


def escaped(text: str) -> str:
    """Return the stub with what Python can read.

    Methods and services get a final ``_``, as functions have it; messages and modules are found by their names.
    """
    replacements: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
        (_NAME, lambda match: f"{match[0]}_"),
        (_TYPE, _type),
        (_IMPORT, _import),
    )
    for pattern, replace in replacements:
        text = pattern.sub(replace, text)
    return text


def _type(match: re.Match[str]) -> str:
    made = match["module"]
    for name in match["path"].split(".")[1:]:
        made = f"getattr({made}, {name!r})" if keyword.iskeyword(name) else f"{made}.{name}"
    return made


def _import(match: re.Match[str]) -> str:
    if not any(map(keyword.iskeyword, match["package"].split("."))):
        return match[0]
    return f"import importlib\n{match['alias']} = importlib.import_module('{match['package']}.{match['module']}')"
