"""Reads the settings of this process from the environment and the settings file. A mistake prevents the start."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import SecretBytes, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from pipeline.errors import OperatorError
from pipeline.process import fault_points
from pipeline.settings import CONFIG_VARIABLE, Settings
from pipeline.yaml_files import BadFile

_OTHER_VARIABLES = (CONFIG_VARIABLE, fault_points.VARIABLE)
"""Of ours, but no settings."""
LIKENESS_MIN = 0.8
"""Of a name and that of a setting (difflib). No variable that Kubernetes makes up for a service is above 0.72."""
_RAISED = "Value error, "
"""What pydantic puts before the message of a ValueError."""


class BadSettings(OperatorError):
    """Invalid settings; the message has one line for each, with its source, its name and the reason."""


def load_settings(**overrides: object) -> Settings:
    """The settings of this process. Raises BadSettings."""
    misspelt = list(_misspelt())
    try:
        settings = Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        mistakes = [_mistake(each, overrides) for each in error.errors()]
        raise BadSettings("\n".join([*misspelt, *mistakes])) from None
    except BadFile as error:
        raise BadSettings(f"{CONFIG_VARIABLE}: {error}") from None
    except SettingsError as error:
        raise BadSettings(str(error)) from None
    if misspelt:
        raise BadSettings("\n".join(misspelt))
    return settings


def _misspelt() -> Iterator[str]:
    """Variables of the environment that would have no effect: SECKILL_TOKEN_REQUIRED would leave everything open.

    One that resembles no setting is not ours: Kubernetes sets SECKILL_SERVICE_HOST if a service is named `seckill`.
    """
    for variable in sorted(os.environ):
        name = variable.lower().removeprefix("seckill_")
        is_known = name == variable.lower() or variable in _OTHER_VARIABLES or name in Settings.model_fields
        if not is_known and difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=LIKENESS_MIN):
            yield f"{variable}: {unknown(name)}"


def source_of(settings: Settings, name: str) -> str:
    """Where this setting comes from, for people: "environment", "file" or "default"."""
    if _in_environment(name):
        return "environment"
    return "file" if name in settings.model_fields_set else "default"


def reason_of(error: ErrorDetails) -> str:
    """What is wrong with a value, and the value, safe to print."""
    name = str(error["loc"][0]) if error["loc"] else ""
    return f"{error['msg'].removeprefix(_RAISED)} (got {_shown(name, error['input'])})"


def unknown(name: str) -> str:
    """Says that there is no such setting, and which name may be meant."""
    meant = difflib.get_close_matches(name, Settings.model_fields, n=1)
    return "unknown setting" + (f"; did you mean {meant[0]}?" if meant else "")


def is_secret(name: str) -> bool:
    """Whether this setting's value must not be shown."""
    field = Settings.model_fields.get(name)
    return field is not None and _has_secret(field.annotation)


def _mistake(error: ErrorDetails, overrides: Mapping[str, object]) -> str:
    if not error["loc"]:
        # A rule about several settings; its message names them, and its input is all of them.
        return error["msg"].removeprefix(_RAISED)
    name = str(error["loc"][0])
    file = os.environ.get(CONFIG_VARIABLE)
    if name in overrides:
        place = name
    elif file and not _in_environment(name):
        place = f"{file}: {name}"
    else:
        place = f"SECKILL_{name.upper()}"
    return f"{place}: {unknown(name) if error['type'] == 'extra_forbidden' else reason_of(error)}"


def _in_environment(name: str) -> bool:
    return any(each.lower() == f"seckill_{name}" for each in os.environ)


def _shown(name: str, value: object) -> str:
    """The value, safe to print: what comes before an "@", or in the query of a URL, may be a password."""
    if is_secret(name):
        return "a secret"
    if isinstance(value, str):
        masked = re.sub(r".*@", "***@", value, flags=re.DOTALL)
        return repr(re.sub(r"(://.*?)\?.*", r"\1?***", masked, flags=re.DOTALL))
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"a {type(value).__name__}"


def _has_secret(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, SecretStr | SecretBytes):
        return True
    return any(map(_has_secret, get_args(annotation)))
