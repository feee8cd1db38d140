"""Reads the settings of this process from the environment. An invalid value prevents the start."""

import re
from typing import get_args

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import OperatorError
from pipeline.settings import Settings


class BadSettings(OperatorError):
    """Invalid settings; the message has one line for each, with its name and the reason."""


def load_settings(**overrides: object) -> Settings:
    """The settings of this process. Raises BadSettings."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise BadSettings("\n".join(_line(each) for each in error.errors())) from None


def _line(error: ErrorDetails) -> str:
    if not error["loc"]:
        return error["msg"]  # a fault of several settings, which it names
    name = "_".join(map(str, error["loc"]))
    shown = "" if is_secret(name) else f" (got {_shown(error['input'])})"
    return f"SECKILL_{name.upper()}: {error['msg']}{shown}"


def is_secret(name: str) -> bool:
    """Whether the setting's value is a secret."""
    field = Settings.model_fields.get(name)
    return field is not None and _contains_secret(field.annotation)


def _contains_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(_contains_secret(each) for each in get_args(annotation))


def _shown(value: object) -> str:
    """The value, safe to print: what comes before an "@" may be a password."""
    return repr(re.sub(r".*@", "***@", value, flags=re.DOTALL) if isinstance(value, str) else value)
