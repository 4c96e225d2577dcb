"""Accepted breaks: the declarations ``option (meshapi.v1.accepted_breaks)`` of a contract's files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from mesh.contract.breaks.break_rules import RULES
from mesh.contract.source_locations import SourceLocations
from mesh.faults import Fault
from mesh.message_methods import serialize

__all__ = ["AcceptedBreak", "accepted_breaks", "accepted_faults"]

_NAME = "meshapi.v1.accepted_breaks"
_NUMBER = 51601


@dataclass(frozen=True, slots=True)
class AcceptedBreak:
    """One declaration.

    Attributes:
        rule: Name of the rule.
        element: The changed element.
        reason: The reason for which it is accepted.
        place: File and line of the declaration. Declarations of two contracts are equal without it.
    """

    rule: str
    element: str
    reason: str
    place: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Rule, element and reason."""
        return self.rule, self.element, self.reason


def accepted_breaks(files: Iterable[FileDescriptorProto], pool: DescriptorPool) -> Iterator[AcceptedBreak]:
    """Yield the declarations of some files, read with the classes of their pool."""
    try:
        extension: Any = pool.FindExtensionByName(_NAME)
    except KeyError:  # a contract of an earlier release
        return
    kind: Any = message_factory.GetMessageClass(extension.containing_type)
    for file in files:
        if file.HasField("options"):
            locations = SourceLocations(file)
            options = kind.FromString(serialize(file.options))
            for index, one in enumerate(options.Extensions[extension]):
                place = locations.at(FileDescriptorProto.OPTIONS_FIELD_NUMBER, _NUMBER, index)
                yield AcceptedBreak(one.rule, one.element, one.reason, place)


def accepted_faults(files: Iterable[FileDescriptorProto], pool: DescriptorPool) -> Iterator[Fault]:
    """Yield a fault for each declaration that can accept nothing, or gives no reason."""
    for one in accepted_breaks(files, pool):
        if one.rule not in RULES:
            close = difflib.get_close_matches(one.rule, RULES, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "mesh check --against prints the rule of each break"
            yield Fault(one.place, f"accepted_breaks: {one.rule!r} is no rule; {hint}")
        elif not one.element:
            yield Fault(one.place, f'accepted_breaks: {one.rule} needs its element, such as "shop.v1.Shop/GetOrder"')
        elif not one.reason.strip():
            yield Fault(one.place, f"accepted_breaks: {one.rule} of {one.element} needs a reason")
