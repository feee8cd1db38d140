"""Where things are, and what they are called."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.settings.value_types import Area, OrUnset


class BrokerKind(StrEnum):
    """The broker that the local stack starts if none is given. AUTO: APACHE if it can run here, else MEMORY."""

    AUTO = "auto"
    APACHE = "apache"
    MEMORY = "memory"


class Locations(Area):
    """Locations and names"""

    data_dir: Path = Path("data")
    """Where the local stack keeps its logs and its state, and each worker that of Faust."""
    broker: BrokerKind = BrokerKind.AUTO
    """The broker that `seckill up` starts without `kafka_bootstrap`. auto: apache if it can run here, else memory."""
    kafka_libs_dir: Path | None = None
    """Where Maven downloads Apache Kafka's jars, once; if unset, `kafka/libs` in the data directory."""
    topics_file: OrUnset[Path] = None
    """A `topics.yaml` to use instead of the packaged one."""
    key_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "seckill"
    """Prefix of all keys in Redis; systems that share a Redis need different ones."""
    group_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")] = "seckill"
    """Prefix of the consumer groups, and so of the followers' changelog topics."""
