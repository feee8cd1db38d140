"""The values of the control topic: breakers, stages of degradation, changes of live settings. See `models.py`."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, WithJsonSchema
from typing_extensions import TypeAliasType

from pipeline.domain.breaker import BreakerState
from pipeline.domain.degradation import Stage
from pipeline.domain.receipts import PARTITIONS_MAX
from pipeline.messages.settings import SETTING_NAME, VALUE_LENGTH_MAX
from pipeline.messages.value_types import Author, Reason, TimeMs, Value, matching


class BreakerValue(Value):
    """The state of the circuit breaker of one partition of the command log"""

    type: Literal["breaker"]
    partition: Annotated[int, Field(ge=0, le=PARTITIONS_MAX - 1)]
    state: Annotated[BreakerState, Field(strict=False)]
    at_ms: TimeMs
    """When it entered this state, by the decider's clock"""
    retry_at_ms: TimeMs
    """When an open breaker is tried again, by the decider's clock; 0 in any other state"""


class DegradationValue(Value):
    """The degradation stage of one ingress"""

    type: Literal["degradation"]
    worker: str
    stage: Annotated[int, Field(ge=min(Stage).value, le=max(Stage).value)]
    at_ms: TimeMs
    """When it entered this stage, by its own clock"""
    load: Annotated[float, Field(ge=0)]
    """What was nearest to its limit, 1 being the limit"""
    cause: str
    """The name of that limit, or `by hand`"""


Scalar = TypeAliasType(
    "Scalar",
    Annotated[
        Annotated[StrictStr, Field(max_length=VALUE_LENGTH_MAX)]
        | StrictBool
        | StrictInt
        | StrictFloat
        | None,
        WithJsonSchema({"type": ["string", "number", "boolean", "null"], "maxLength": VALUE_LENGTH_MAX}),
    ],
)


class _SettingChangeValue(Value):
    type: str
    name: Annotated[str, matching(SETTING_NAME)]
    by: Author
    """Who changed it"""
    reason: Reason
    """Why"""
    at_ms: TimeMs
    """When, by the clock of the process that wrote the record"""


class SettingValue(_SettingChangeValue):
    """A live setting was set. Valid if the model of the settings accepts the value"""

    type: Literal["setting"]
    value: Scalar


class UnsetValue(_SettingChangeValue):
    """A live setting was unset: it returns to what the environment, the settings file or the default say"""

    type: Literal["unset"]


ControlValue = TypeAliasType(
    "ControlValue",
    Annotated[BreakerValue | DegradationValue | SettingValue | UnsetValue, Field(discriminator="type")],
)
