"""Text of one type stub file (.pyi): its imports, its lines and its docstrings. Pure.

Names of the contract stand in the same scopes as names of Python: a field may be called ``int`` or ``property``. A name
of Python that the file also declares is imported under another name.
"""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Collection, Iterator, Sequence

from google.protobuf.descriptor import Descriptor, EnumDescriptor

__all__ = ["StubModule", "is_name", "module_name"]

_HEAD = """\
# mypy: disable-error-code="import-untyped"
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false
"""
"""First lines: modules that have no stubs (``google.rpc``) are ``Any``, and types of extensions are private names."""


def module_name(file: str) -> str:
    """Return the Python module of a .proto file's messages: ``login/v1/login.proto`` → ``login.v1.login_pb2``."""
    return file.removesuffix(".proto").replace("-", "_").replace("/", ".") + "_pb2"  # as protoc


def is_name(path: str) -> bool:
    """Return whether Python code can write a dotted name. protoc declares messages and modules that it cannot."""
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in path.split("."))


class StubModule:
    """Builder of one stub file.

    Args:
        module: The Python module that the stub file describes.
        declared: All names that the stub file declares in any scope.
        nested: Those of ``declared`` that a class of the stub file declares.
    """

    def __init__(self, module: str, declared: Collection[str], nested: Collection[str] = ()) -> None:
        self._module = module
        self._declared = declared
        self._nested = nested
        self._aliases: dict[tuple[str, str], str] = {}
        self._lines: list[str] = []

    def add(self, depth: int, *lines: str) -> None:
        """Add lines, indented by ``depth`` levels."""
        self._lines += [f"{'    ' * depth}{line}" if line else "" for line in lines]

    def comment(self, depth: int, text: str) -> None:
        """Add a docstring, if the text is not empty."""
        if not text:
            return
        lines = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"').splitlines()
        if len(lines) == 1 and not lines[0].endswith('"'):
            self.add(depth, f'"""{lines[0]}"""')
        else:
            self.add(depth, f'"""{lines[0]}', *lines[1:], '"""')

    def builtin(self, name: str) -> str:
        """Return the expression for a builtin."""
        return name if name not in self._declared and hasattr(builtins, name) else self.use("builtins", name)

    def use(self, module: str, name: str) -> str:
        """Import a name of a module, and return its alias."""
        alias = self._aliases.get((module, name))
        if alias is None:
            alias = f"_{name.lstrip('_')}"
            taken = {*self._declared, *self._aliases.values()}
            while alias in taken:
                alias += "_"
            self._aliases[module, name] = alias
        return alias

    def optional(self, *types: str) -> str:
        """Return the union of the types and None."""
        return " | ".join(dict.fromkeys((*types, "None")))

    def literal(self, names: Sequence[str]) -> str:
        """Return the type of exactly these strings."""
        return f"{self.use('typing', 'Literal')}[{', '.join(map(_quoted, names))}]"

    def type(self, descriptor: Descriptor | EnumDescriptor) -> str:
        """Return the expression for the class of a message or an enum.

        It is ``Any`` if Python code cannot write the name.
        """
        path = descriptor.full_name.removeprefix(f"{descriptor.file.package}." if descriptor.file.package else "")
        module = module_name(descriptor.file.name)
        own = module == self._module
        if not is_name(path) or not (own or is_name(module)):
            return self.use("typing", "Any")
        if own and (path.partition(".")[0] not in self._nested or not is_name(module)):
            return path
        package, _, name = module.rpartition(".")
        return f"{self.use(package, name)}.{path}"

    def text(self, title: str) -> str:
        """Return the file."""
        imports = "\n".join(self._imports())
        body = "\n".join(self._lines).strip("\n")
        return f'{_HEAD}"""{title}"""\n\n{imports}\n\n{body}\n'

    def _imports(self) -> Iterator[str]:
        public: dict[str, list[str]] = {}
        for (module, name), alias in sorted(self._aliases.items()):
            if module:
                public.setdefault(module, []).append(f"{name} as {alias}")
            else:
                yield f"import {name} as {alias}"
        for module, names in public.items():
            yield f"from {module} import {', '.join(names)}"


def _quoted(text: str) -> str:
    return f'"{text}"'
