"""``google.api.field_behavior``: behaviours of a field beyond its type. Pure.

Source: google/api/field_behavior.proto, AIP-203.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["OUTPUT_ONLY", "REQUIRED", "Behaviors"]

REQUIRED, OUTPUT_ONLY = "REQUIRED", "OUTPUT_ONLY"


class Behaviors:
    """Reader of the option. It uses the contract's own classes, because the option is an extension in them.

    Args:
        pool: Descriptor pool of the contract.
    """

    def __init__(self, pool: DescriptorPool) -> None:
        self._extension: Any = None
        try:
            self._extension = pool.FindExtensionByName("google.api.field_behavior")
        except KeyError:
            return
        self._options: Any = message_factory.GetMessageClass(self._extension.containing_type)

    def of(self, field: FieldDescriptor) -> frozenset[str]:
        """Return the names of a field's behaviours."""
        if self._extension is None or not field.has_options:
            return frozenset()
        options = self._options.FromString(field.GetOptions().SerializeToString())
        names = self._extension.enum_type.values_by_number
        return frozenset(names[one].name for one in options.Extensions[self._extension] if one in names)

    def required(self, field: FieldDescriptor) -> bool:
        """Whether the field is REQUIRED."""
        return REQUIRED in self.of(field)
