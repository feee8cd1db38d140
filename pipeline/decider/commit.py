"""Appends decisions to the decision log. This is the commit, and the only effect of a decider."""

from collections.abc import Sequence

from pipeline.decider.ports import Keyed, Producer
from pipeline.process import fault_points


async def commit(producer: Producer, topic: str, partition: int, decisions: Sequence[Keyed]) -> int:
    """Append these decisions. Returns the position in the decision log after the last of them.

    Raises SendFailed. Some of the decisions may then be in the log; appending them again is harmless, because the
    bytes are the same and followers drop repeats.
    """
    sending = producer.send_all(topic, partition, decisions)
    last = await fault_points.in_flight(fault_points.RESULTS_IN_FLIGHT, sending)
    fault_points.reach(fault_points.AFTER_RESULTS)
    return last + 1
