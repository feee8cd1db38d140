"""What every process has."""

from enum import StrEnum
from typing import Annotated

from pipeline.settings.value_types import Area, Live


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class EveryProcess(Area):
    """Every process"""

    log_level: Annotated[LogLevel, Live()] = LogLevel.INFO
    """The lowest level of our own lines in the log. Lines of libraries below info are never logged."""
    worker_name: str = "worker-1"
    """The name of this process, set by the local stack or the deployment."""
