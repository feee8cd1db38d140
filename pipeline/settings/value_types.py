"""What areas of the settings have in common."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

ValueT = TypeVar("ValueT")

Port = Annotated[int, Field(ge=1, le=65_535)]
Milliseconds = Annotated[int, Field(ge=1, le=7 * 24 * 3_600_000)]
Limit = Annotated[int, Field(ge=1, le=10_000_000)]


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


OrUnset = Annotated[ValueT | None, BeforeValidator(_none_if_empty)]
"""A setting that may be unset; an empty environment variable unsets it, too."""


class Live:
    """Annotates a setting that may change while the process runs: the last item of its `Annotated[int, ..., Live()]`.

    The code reads it from `InForce` each time.
    """


class Area(BaseModel):
    """A group of settings. The first line of its docstring is its heading in `docs/settings.md`."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _flags_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `on` as true, of which pydantic would make the limit 1."""
        if type(value) is bool and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"must not be {str(value).lower()}")
        return value
