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
    """The least severe lines of ours that are logged. Those of libraries are never more than info."""
    worker_name: str = "worker-1"
    """The name of this process, set by the local stack or the deployment."""
