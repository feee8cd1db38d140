"""All settings in one model, and the sources of their values."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from pydantic import ValidationInfo, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from pipeline.endpoints import NO_FILES
from pipeline.settings.access import Access, access_faults
from pipeline.settings.decider import Decider
from pipeline.settings.every_process import EveryProcess
from pipeline.settings.flow_control import FlowControl
from pipeline.settings.ingress import Ingress
from pipeline.settings.kafka import Kafka, kafka_faults
from pipeline.settings.listeners import Listeners
from pipeline.settings.locations import Locations
from pipeline.settings.redis import Redis, redis_faults
from pipeline.settings.value_types import Area, Live
from pipeline.yaml_files import read_mapping

CONFIG_VARIABLE = "SECKILL_CONFIG"
"""The variable that names the settings file. If it is unset or empty, there is none."""

AREAS: Final[tuple[type[Area], ...]] = (
    *(Locations, Kafka, Redis, Listeners, Ingress, Access, FlowControl, Decider, EveryProcess),
)
"""In the order of `docs/settings.md`."""


class _SettingsFile(YamlConfigSettingsSource):
    """The settings file. Unlike its base it refuses a missing file and duplicate keys. Raises BadFile."""

    def _read_files(self, files: Any, deep_merge: bool = False) -> dict[str, Any]:
        return {} if files is None else read_mapping(files)


# A model has the fields of its last base first.
class Settings(
    EveryProcess, Decider, FlowControl, Access, Ingress, Listeners, Redis, Kafka, Locations, BaseSettings
):
    model_config = SettingsConfigDict(
        env_prefix="SECKILL_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(CONFIG_VARIABLE)
        return init_settings, env_settings, _SettingsFile(settings_cls, Path(file) if file else None)

    def with_values(self, values: Mapping[str, object]) -> Self:
        """These settings with other values of live ones, validated like any. Raises ValidationError.

        Reads neither sources nor files, such as certificates, which may be gone or half written by now.
        """
        changed = type(self).__new__(type(self))
        # Not the constructor of BaseSettings, which would read the sources again.
        self.__pydantic_validator__.validate_python(
            self.model_dump(exclude_unset=True) | dict(values), self_instance=changed, context=NO_FILES
        )
        return changed

    @model_validator(mode="after")
    def _fit_together(self, info: ValidationInfo) -> Self:
        # These rules read files, and none is about a live setting.
        if info.context is NO_FILES:
            return self
        if faults := [*kafka_faults(self), *redis_faults(self), *access_faults(self, self)]:
            raise PydanticCustomError("combination", "{lines}", {"lines": "\n".join(faults)})
        return self


LIVE_SETTINGS = frozenset(
    name
    for name, field in Settings.model_fields.items()
    if any(isinstance(each, Live) for each in field.metadata)
)
"""The names of the settings that change while a process runs."""


class InForce:
    """The settings in force in this process. Read `in_force.settings.x` each time, because live ones change."""

    def __init__(self, base: Settings) -> None:
        self.base = base
        """What this process started with; an unset setting returns to it."""
        self.settings = base
        self.version = -1
        """The offset of the newest record of the control topic that changed a setting; -1 for none."""
