"""JSON Schema (2020-12) from pydantic models, for the messages and the HTTP bodies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

Schema = dict[str, Any]


def json_schemas(types: Mapping[str, Any], reference: str) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """The schema of each type by its name, and the definitions that they refer to, sorted by name.

    `reference` is the template of a `$ref`, with `{model}` for the name of the definition. The schemas have standard
    keywords only, and no titles. A union becomes `oneOf`, because the alternatives of each of ours are exclusive.
    """
    schemas, shared = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(type_)) for name, type_ in types.items()],
        ref_template=reference,
        schema_generator=_InOrder,
    )
    definitions = shared.get("$defs", {})
    return (
        {str(name): _plain(schema) for (name, _), schema in schemas.items()},
        {name: _plain(definitions[name]) for name in sorted(definitions)},
    )


class _InOrder(GenerateJsonSchema):
    """Keeps the fields in the order of the model."""

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        "oneOf" if name == "anyOf" and not _is_requirement(value) else name: _plain(value)
        for name, value in node.items()
        # A title that is not a string is a property of that name.
        if name != "discriminator" and not (name == "title" and isinstance(value, str))
    }


def _is_requirement(alternatives: Any) -> bool:
    """Whether these are the fields of which at least one must be present: not exclusive."""
    return all(isinstance(each, dict) and each.keys() == {"required"} for each in alternatives)


@dataclass(frozen=True)
class Among:
    """Annotates an int that must be one of `values`. A Literal would also accept true and 1.0 as 1."""

    values: tuple[int, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "enum": [int(value) for value in self.values]}

    def _check(self, value: int) -> int:
        if value not in self.values:
            raise ValueError(f"not one of {', '.join(map(str, map(int, self.values)))}")
        return value
