"""JSON of ``google.protobuf.Any`` and of the wrappers: the well-known types that need codecs of other types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from mesh.message_methods import parser, serialize_partial
from mesh.protojson.scalars import BadValue, decoder, describe, encoder
from mesh.protojson.wellknown import JsonEncodeError

if TYPE_CHECKING:
    from mesh.protojson.codec import Codec, Codecs

__all__ = ["any_of", "wrapper"]

Fill = Callable[[Any, Any], None]
Dump = Callable[[Any], Any]


def wrapper(field: FieldDescriptor) -> tuple[Fill, Dump]:
    """Return (fill, dump) of the wrapper with this field ``value``."""
    decode, encode = decoder(field), encoder(field)

    def fill(message: Any, value: Any) -> None:
        message.value = decode(value)

    def dump(message: Any) -> Any:
        return message.value if encode is None else encode(message.value)

    return fill, dump


class _Any:
    """Codec of ``Any``. It looks for the type of the URL in the message's own pool, then in protobuf's default pool."""

    def __init__(self, pool: DescriptorPool, codecs: Codecs) -> None:
        self.pool = pool
        self.codecs = codecs

    def find(self, url: object) -> Codec | None:
        prefix, slash, name = url.rpartition("/") if isinstance(url, str) else ("", "", "")
        if not (prefix or slash) or not name:
            return None
        for pool in (self.pool, descriptor_pool.Default()):
            try:
                return self.codecs.of_descriptor(pool.FindMessageTypeByName(name))
            except KeyError:
                continue
        return None

    def fill(self, message: Any, value: Any) -> None:
        if type(value) is not dict:
            raise BadValue(f"expected an object, got {describe(value)}")
        if not value:
            return
        url = value.get("@type")
        codec = self.find(url)
        if codec is None:
            error = BadValue("expected the URL of a known message type, such as type.googleapis.com/package.Message")
            error.path.append("@type")
            raise error
        rest = {key: one for key, one in value.items() if key != "@type"}
        inner = codec.message()
        if codec.wrapped:
            self._fill_wrapped(codec, inner, rest)
        else:
            if rest == {"value": {}} and codec.message.DESCRIPTOR.full_name == "google.protobuf.Empty":
                rest = {}  # as Java and Go print Empty
            codec.fill(inner, rest)
        message.type_url = url
        message.value = serialize_partial(inner)

    def _fill_wrapped(self, codec: Codec, inner: Any, rest: dict[str, Any]) -> None:
        if rest.keys() != {"value"} and not (self.codecs.ignore_unknown and "value" in rest):
            raise BadValue(f'expected "@type" and "value", the form of {codec.message.DESCRIPTOR.full_name} in Any')
        try:
            codec.fill(inner, rest["value"])
        except BadValue as error:
            error.path.append("value")
            raise

    def dump(self, message: Any) -> dict[str, Any]:
        url = message.type_url
        if not url and not message.value:
            return {}
        codec = self.find(url)
        if codec is None:
            raise JsonEncodeError(f"an Any holds an unknown type: {url!r}")
        try:
            inner = parser(codec.message)(message.value)
        except DecodeError:
            raise JsonEncodeError(f"the value of an Any is no valid {url!r}") from None
        value = codec.dump(inner)
        if codec.wrapped:
            return {"@type": url, "value": value}
        if "@type" in value:
            raise JsonEncodeError(
                f'an Any holds a {codec.message.DESCRIPTOR.full_name}, which has a field named "@type"'
            )
        return {"@type": url, **value}


def any_of(pool: DescriptorPool, codecs: Codecs) -> tuple[Fill, Dump]:
    """Return (fill, dump) of ``Any``."""
    codec = _Any(pool, codecs)
    return codec.fill, codec.dump
