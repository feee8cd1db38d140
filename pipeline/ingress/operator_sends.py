"""Sends records of operators: a limited number at a time. A send that has begun finishes, even if its client leaves."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from pipeline.ingress.errors import CommandNotAcknowledged, CommandNotSent
from pipeline.kafka.producer import SendFailed

UNSENT_MAX = 16
"""Limit on unacknowledged records: an operator's retries must not pile up while Kafka does not answer."""

logger = logging.getLogger(__name__)


class OperatorSends:
    def __init__(self, what: str) -> None:
        """`what` names the records in the log."""
        self._what = what
        self._sending: set[asyncio.Task[int]] = set()

    async def send(self, sending: Coroutine[Any, Any, int], timeout_ms: int) -> int:
        """The offset that `sending` returns. Raises CommandNotSent and CommandNotAcknowledged."""
        if len(self._sending) >= UNSENT_MAX:
            sending.close()
            raise CommandNotSent
        # In a task of its own: neither a client that disconnects nor the timeout may cancel the send.
        task = asyncio.create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sent)
        await asyncio.wait({task}, timeout=timeout_ms / 1_000)
        if not task.done() or task.exception() is not None:
            raise CommandNotAcknowledged
        return task.result()

    def _sent(self, task: asyncio.Task[int]) -> None:
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error(
                "sending %s failed: %s",
                self._what,
                error,
                exc_info=None if isinstance(error, SendFailed) else error,
            )
