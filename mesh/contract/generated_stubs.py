"""Keyword escaping in generated gRPC stubs. Pure.

protoc escapes Python keywords in the modules of messages but not in those of gRPC stubs. A method ``lambda``, a service
or message ``None`` or a folder ``class/`` yields a file that Python cannot parse.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable

__all__ = ["escaped"]

_KEYWORDS = "|".join(keyword.kwlist)
_NAME = re.compile(rf"(?:\b(?:self|servicer)\.|^    def |^class )(?:{_KEYWORDS})\b(?=[ ,(:])", re.MULTILINE)
"""Name of a method or a service."""
_TYPE = re.compile(r"\b(?P<module>\w+_pb2)(?P<path>(?:\.\w+)+)(?=\.(?:SerializeToString|FromString)\b)")
_IMPORT = re.compile(r"^from (?P<package>[\w.]+) import (?P<module>\w+) as (?P<alias>\w+)$", re.MULTILINE)


def escaped(text: str) -> str:
    """Return the stub as valid Python.

    Names of methods and services get a final ``_``, as functions do. Messages and modules are looked up by their names.
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
