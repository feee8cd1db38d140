"""Reads the settings of this process from the environment. An invalid value prevents the start."""

import re

from pydantic import ValidationError

from pipeline.errors import OperatorError
from pipeline.settings import Settings


class BadSettings(OperatorError):
    """Invalid settings; the message has one line for each, with its name and the reason."""


def load_settings(**overrides: object) -> Settings:
    """The settings of this process. Raises BadSettings."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = (
            f"SECKILL_{'_'.join(map(str, each['loc'])).upper()}: {each['msg']} (got {_shown(each['input'])})"
            for each in error.errors()
        )
        raise BadSettings("\n".join(lines)) from None


def _shown(value: object) -> str:
    """The value, safe to print: what comes before an "@" may be a password."""
    return repr(re.sub(r".*@", "***@", value, flags=re.DOTALL) if isinstance(value, str) else value)
