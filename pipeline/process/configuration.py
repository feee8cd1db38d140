"""Reads the settings of this process from the environment. A bad value is a refusal to start."""

import re

from pydantic import ValidationError

from pipeline.errors import OperatorError
from pipeline.settings import Settings


class BadSettings(OperatorError):
    """Settings that no process starts with; the message has a line for each that says which and why."""


def load_settings(**overrides: object) -> Settings:
    """The settings of this process; raises BadSettings."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = (
            f"SECKILL_{'_'.join(map(str, each['loc'])).upper()}: {each['msg']} (got {_shown(each['input'])})"
            for each in error.errors()
        )
        raise BadSettings("\n".join(lines)) from None


def _shown(value: object) -> str:
    """The value as it may be shown: a password may stand before an "@"."""
    return repr(re.sub(r".*@", "***@", value, flags=re.DOTALL) if isinstance(value, str) else value)
