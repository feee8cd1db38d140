"""Every setting, its default and its limits. `docs/settings.md` is generated from this model.

Sources, the first one wins: the environment (`SECKILL_` plus the name in capitals), the YAML file that `SECKILL_CONFIG`
names (the names as here), the defaults. An invalid value prevents the start, with a message that names the setting.

A setting marked `Live()` also changes while the process runs: a record of the control topic is above all of these.
What decides a purchase is never live; it is a command in the product's partition.

Each area has a file of its own, with the rules for its values; `model.py` joins them.
"""

from pipeline.settings.access import KEY_ALGORITHMS, SECRET_ALGORITHM, secrets_in
from pipeline.settings.every_process import LogLevel
from pipeline.settings.flow_control import LimiterAlgorithm
from pipeline.settings.kafka import Profile
from pipeline.settings.listeners import HEALTH_HOST
from pipeline.settings.locations import BrokerKind
from pipeline.settings.model import AREAS, CONFIG_VARIABLE, LIVE_SETTINGS, InForce, Settings

__all__ = [
    "AREAS",
    "CONFIG_VARIABLE",
    "HEALTH_HOST",
    "KEY_ALGORITHMS",
    "LIVE_SETTINGS",
    "SECRET_ALGORITHM",
    "BrokerKind",
    "InForce",
    "LimiterAlgorithm",
    "LogLevel",
    "Profile",
    "Settings",
    "secrets_in",
]
