"""Where a log ends, as far as Faust's consumer knows: told with each fetch, so it costs nothing to ask."""

from collections.abc import Callable

import faust
from faust.types import TP


def log_end_of(app: faust.App, topic: str) -> Callable[[int], int | None]:
    """By partition, where this topic ended when Faust's consumer last fetched; None while it does not know."""

    def log_end(partition: int) -> int | None:
        end: int | None = app.consumer.highwater(TP(topic, partition))
        return end

    return log_end
