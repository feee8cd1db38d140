"""Records of the decision log that no decider wrote. Only deciders may write there, so a stranger decides nothing."""

import logging

from pipeline.messages import NotADecision, Result, decode_result

logger = logging.getLogger(__name__)


def decision_at(partition: int, position: int, value: bytes | None) -> Result | None:
    """The decision in this record. None for a stranger, which is reported: its reader passes it over.

    Everybody who follows the decision log asks here, so that all pass over the same records.
    """
    try:
        return decode_result(value)
    except NotADecision as error:
        logger.error("decision log, partition %d at %d: %s", partition, position, error)
        return None
