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
        raise BadSettings("\n".join(map(_line, error.errors()))) from None


def _line(error: ErrorDetails) -> str:
    if not error["loc"]:
        # About a combination of settings: the message names them, and the input is all values, also the secret ones.
        return error["msg"].removeprefix("Value error, ")
    name = str(error["loc"][0])
    got = "" if _is_secret(name) else f" (got {_shown(error['input'])})"
    return f"SECKILL_{'_'.join(map(str, error['loc'])).upper()}: {error['msg']}{got}"


def _is_secret(name: str) -> bool:
    field = Settings.model_fields.get(name)
    return field is not None and SecretStr in (field.annotation, *get_args(field.annotation))


def _shown(value: object) -> str:
    """The value, safe to print: what comes before an "@" may be a password."""
    return repr(re.sub(r".*@", "***@", value, flags=re.DOTALL) if isinstance(value, str) else value)
