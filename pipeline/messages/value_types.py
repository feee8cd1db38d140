"""The types of the fields that several messages share, and the base of all values."""

import base64
import re
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    model_validator,
)
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypeAliasType

from pipeline.domain.codes import DECIDED_CODES
from pipeline.domain.ids import ID
from pipeline.domain.product import QUANTITY_MAX, STOCK_MAX
from pipeline.domain.receipts import RECEIPT
from pipeline.messages.commands import PRICE
from pipeline.messages.fields import BY_LENGTH_MAX, LINE, REASON_LENGTH_MAX, TIME_MS_MAX
from pipeline.messages.json_schema import Among


def matching(pattern: re.Pattern[str]) -> Any:
    return Field(pattern=f"^{pattern.pattern}$")


def _bytes(text: object) -> bytes:
    if type(text) is not str:
        raise ValueError("not base64")
    return base64.b64decode(text, validate=True)


# Each is strict on its own: the `strict` of a model does not apply inside a named type.
Id = TypeAliasType("Id", Annotated[StrictStr, matching(ID)])
Receipt = TypeAliasType(
    "Receipt",
    Annotated[
        StrictStr,
        matching(RECEIPT),
        Field(description="{partition}-{offset}-{index} of a purchase in the command log"),
    ],
)
Offset = TypeAliasType("Offset", Annotated[StrictInt, Field(ge=0)])
TimeMs = TypeAliasType(
    "TimeMs", Annotated[StrictInt, Field(ge=0, le=TIME_MS_MAX, description="Milliseconds since 1970, UTC")]
)
Money = TypeAliasType("Money", Annotated[StrictStr, Field(pattern=r"^(0|[1-9][0-9]*)(\.[0-9]{1,4})?$")])
Price = TypeAliasType("Price", Annotated[StrictStr, matching(PRICE)])
Stock = TypeAliasType("Stock", Annotated[StrictInt, Field(ge=0, le=STOCK_MAX)])
Quantity = TypeAliasType("Quantity", Annotated[StrictInt, Field(ge=1, le=QUANTITY_MAX)])
DecidedCode = TypeAliasType("DecidedCode", Annotated[StrictInt, Among(DECIDED_CODES)])
Index = TypeAliasType(
    "Index",
    Annotated[
        StrictStr,
        Field(pattern="^(0|[1-9][0-9]{0,2})$", description="Position of a purchase in its record, from 0"),
    ],
)
Base64 = TypeAliasType(
    "Base64",
    Annotated[
        bytes,
        BeforeValidator(_bytes),
        WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
    ],
)


Author = Annotated[str, matching(LINE), Field(max_length=BY_LENGTH_MAX)]
Reason = Annotated[str, matching(LINE), Field(max_length=REASON_LENGTH_MAX)]


class Value(BaseModel):
    """A JSON object with these fields and no others. An optional field is left out, never null."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    required_together: ClassVar[dict[str, list[str]]] = {}
    """By field, the fields that must be present if it is."""
    at_least_one_of: ClassVar[list[str]] = []
    """Fields of which one must be present at least."""

    @model_validator(mode="after")
    def _check_required(self) -> Self:
        for name, others in self.required_together.items():
            if name in self.model_fields_set and not self.model_fields_set.issuperset(others):
                raise ValueError(f"{name}: only with {' and '.join(others)}")
        if self.at_least_one_of and self.model_fields_set.isdisjoint(self.at_least_one_of):
            raise ValueError(f"{' and '.join(self.at_least_one_of)}: both missing")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        json_schema = handler(schema)
        resolved = handler.resolve_ref_schema(json_schema)
        if cls.required_together:
            resolved["dependentRequired"] = cls.required_together
        if cls.at_least_one_of:
            resolved["anyOf"] = [{"required": [name]} for name in cls.at_least_one_of]
        return json_schema
