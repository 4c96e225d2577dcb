"""JSON Schema → Hypothesis strategies of the values that it offers, for the keywords that the document uses."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jsonschema
from hypothesis import strategies as st

Schema = dict[str, Any]

FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)
KNOWN = {
    "$ref", "type", "enum", "const", "pattern", "format", "minimum", "maximum", "minLength", "properties", "required",
    "additionalProperties", "propertyNames", "items", "oneOf", "anyOf", "dependentSchemas", "description", "examples",
    "deprecated", "readOnly", "writeOnly", "contentEncoding",
}  # fmt: skip
"""A keyword that is not here would be passed over, so it is an error."""


class Values:
    """Strategies for the schemas of one document.

    Args:
        document: The OpenAPI document.
    """

    def __init__(self, document: Schema) -> None:
        self._components = document["components"]["schemas"]
        self._made: dict[tuple[int, int], st.SearchStrategy[Any]] = {}

    def of(self, schema: Schema, depth: int = 3) -> st.SearchStrategy[Any]:
        """Return the strategy of a schema of the document; objects nested deeper have required properties only."""
        key = (id(schema), depth)
        if key not in self._made:
            self._made[key] = self._strategy(schema, depth)
        return self._made[key]

    def _strategy(self, schema: Schema, depth: int) -> st.SearchStrategy[Any]:
        assert schema.keys() <= KNOWN, schema.keys() - KNOWN
        if "$ref" in schema:
            return self.of(self._components[schema["$ref"].rpartition("/")[2]], depth)
        for several in ("oneOf", "anyOf"):
            if several in schema:
                return st.one_of([self.of(one, depth) for one in schema[several]])
        if "const" in schema:
            return st.just(schema["const"])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        types = schema.get("type", "string" if "pattern" in schema else None)
        if types is None:
            return JSON
        return st.one_of(
            [self._typed(schema, type_, depth) for type_ in ([types] if isinstance(types, str) else types)]
        )

    def _typed(self, schema: Schema, type_: str, depth: int) -> st.SearchStrategy[Any]:
        if type_ == "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        if type_ == "number":
            low, high = schema.get("minimum"), schema.get("maximum")
            return st.floats(low, high, allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
        if type_ == "string":
            return self._string(schema)
        if type_ == "array":
            return st.lists(self.of(schema["items"], depth - 1), max_size=2 if depth > 0 else 0)
        return {
            "object": lambda: self._object(schema, depth), "boolean": st.booleans, "null": st.none,
        }[type_]()  # fmt: skip

    def _string(self, schema: Schema) -> st.SearchStrategy[str]:
        valid = jsonschema.Draft202012Validator(schema, format_checker=FORMATS).is_valid
        if "pattern" not in schema:
            return TEXT.filter(valid)
        return _matching(schema["pattern"]).filter(valid)

    @st.composite
    @staticmethod
    def _an_object(draw: Any, values: Values, schema: Schema, depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        optional = [name for name in properties if name not in required] if depth > 0 else []
        chosen = draw(st.lists(st.sampled_from(optional), max_size=4, unique=True)) if optional else []
        made: dict[str, Any] = {}
        for name in (*required, *chosen):
            rivals = {
                other
                for one in (name, *made)
                for other in schema.get("dependentSchemas", {}).get(one, {}).get("properties", {})
            }
            if name not in rivals:
                made[name] = draw(values.of(properties[name], depth - 1))
        more = schema.get("additionalProperties", True)
        if isinstance(more, dict) and depth > 0:
            names = values.of(schema["propertyNames"]) if "propertyNames" in schema else TEXT
            made |= draw(st.dictionaries(names, values.of(more, depth - 1), max_size=2))
        return made

    def _object(self, schema: Schema, depth: int) -> st.SearchStrategy[dict[str, Any]]:
        return self._an_object(self, schema, depth)


@lru_cache
def _matching(pattern: str) -> st.SearchStrategy[str]:
    return st.from_regex(pattern, fullmatch=True, alphabet=PRINTABLE)
