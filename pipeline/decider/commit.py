"""Writing decision records into the decision log: the commit, and the only effect that a decider has."""

from collections.abc import Sequence

from pipeline.decider.ports import Keyed, Producer
from pipeline.process import fault_points


async def commit(producer: Producer, topic: str, partition: int, decisions: Sequence[Keyed]) -> int:
    """Write these decision records. Returns the position in the decision log after the last of them.

    Raises SendFailed, after which any part may have been written: writing it again is harmless, because the bytes are
    the same and followers drop repeats.
    """
    sending = producer.send_all(topic, partition, decisions)
    last = await fault_points.in_flight(fault_points.RESULTS_IN_FLIGHT, sending)
    fault_points.reach(fault_points.AFTER_RESULTS)
    return last + 1
