"""Degradation stages of ingresses, records of the control topic."""

from typing import NamedTuple

import orjson

from pipeline.domain.degradation import Stage


class DegradationChange(NamedTuple):
    """An ingress has been in this stage since `at_ms` (wall clock). `load` is what was nearest to its limit: 1 is the
    limit, and `cause` names it; it is "by hand" if the stage was set.
    """

    worker: str
    stage: Stage
    at_ms: int
    load: float
    cause: str


def encode_degradation(change: DegradationChange) -> tuple[bytes, bytes]:
    """Key and value of the record in the control topic."""
    key = f"degradation:{change.worker}".encode()
    return key, orjson.dumps({"type": "degradation", **change._asdict()})
