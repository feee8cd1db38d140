"""Writing decision records into the decision log: the commit, and the only effect that a decider has."""

from collections.abc import Sequence

from pipeline import faultpoints
from pipeline.decider.ports import Keyed, Producer


async def commit(producer: Producer, topic: str, partition: int, decisions: Sequence[Keyed]) -> int:
    """Write these decision records. Returns the position in the decision log after the last of them.

    Raises SendFailed, after which any part may have been written: writing it again is harmless, because the bytes are
    the same and followers drop repeats.
    """
    sending = producer.send_all(topic, partition, decisions)
    last = await faultpoints.in_flight(faultpoints.RESULTS_IN_FLIGHT, sending)
    faultpoints.reach(faultpoints.AFTER_RESULTS)
    return last + 1
