"""Finds the decision on a request: in memory, by waiting for it, or in the decision log.

If there is no decision, it says whether the request is queued, was never issued, or has lost its decision to retention.
"""

import asyncio
import logging

from pipeline.domain.receipts import Receipt
from pipeline.errors import KafkaUnavailable
from pipeline.ingress.decisions.decision_rate import Estimate, RateSampler
from pipeline.ingress.decisions.feed import ResultsFeed
from pipeline.ingress.decisions.lookup import DecisionLookup
from pipeline.ingress.decisions.record import DecisionRecord
from pipeline.ingress.decisions.search import NotFound
from pipeline.ingress.decisions.waiters import Waiters
from pipeline.ingress.errors import (
    DecisionDeleted,
    RequestRefused,
    TooManyWaiters,
    UnknownRequest,
)
from pipeline.ingress.ports import Acknowledged, Ends

RETRY_MS = 50
"""Pause between two attempts to find a decision that the feed has passed."""

logger = logging.getLogger(__name__)


class DecisionFinder:
    def __init__(
        self,
        waiters: Waiters,
        feed: ResultsFeed,
        older: DecisionLookup,
        commits: Acknowledged,
        ends: Ends,
        rates: RateSampler,
    ) -> None:
        self._waiters = waiters
        self._feed = feed
        self._lookup = older
        self._commits = commits
        self._ends = ends
        self._rates = rates
        self.is_stopping = False

    def stop(self) -> None:
        """Release pollers without a decision: they can ask another process."""
        self.is_stopping = True
        self._waiters.release_pollers()

    def check_room(self) -> None:
        """Raises TooManyWaiters if a purchase that waits for its decision should not be accepted now."""
        if not self._waiters.has_room:
            raise TooManyWaiters

    async def wait_for_own(self, receipt: Receipt, wait_ms: int) -> DecisionRecord | None:
        """The decision on a command that this process has just written to the log; None if it takes longer.

        Never raises: the command is in the log, and its sender must learn that, whatever happens here.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + wait_ms / 1_000
        try:
            decided = await self._waiters.wait(receipt.partition, receipt.offset, wait_ms)
            if decided is None and self._waiters.is_past(receipt.partition, receipt.offset):
                decided = await self.wait(receipt, int((deadline_s - loop.time()) * 1_000))
        except (RequestRefused, KafkaUnavailable) as error:
            logger.warning("request %s: cannot wait for the decision: %r", receipt, error)
            return None
        return decided

    async def wait(self, receipt: Receipt, wait_ms: int) -> DecisionRecord | None:
        """The decision; None if there is none within `wait_ms`.

        Raises UnknownRequest, DecisionDeleted, KafkaUnavailable, TooManyLookups, TooManyWaiters.
        """
        loop = asyncio.get_running_loop()
        partition, offset, _ = receipt
        deadline_s = loop.time() + wait_ms / 1_000
        while True:
            found = await self.find(receipt)
            left_ms = int((deadline_s - loop.time()) * 1_000)
            if found is not None or left_ms <= 0 or self.is_stopping:
                return found
            if self._waiters.is_past(partition, offset):
                await asyncio.sleep(min(left_ms, RETRY_MS) / 1_000)
                continue
            found = await self._waiters.wait(partition, offset, left_ms, poller=True)
            if found is not None:
                return found

    async def find(self, receipt: Receipt) -> DecisionRecord | None:
        """The decision; None if the request is still queued.

        Raises UnknownRequest, DecisionDeleted, KafkaUnavailable, TooManyLookups.
        """
        partition, offset, _ = receipt
        if partition >= len(self._ends.ends):
            raise UnknownRequest(f"{receipt} is not a valid request id: there is no partition {partition}")
        if (found := self._waiters.recent(partition, offset)) is not None:
            return found
        await self._check_issued(receipt)
        if self._is_ahead_of_feed(partition, offset):
            return None
        older = await self._lookup.find(partition, offset)
        if older is NotFound.TRIMMED:
            raise DecisionDeleted(f"the decision on {receipt} is no longer in the log")
        if isinstance(older, NotFound):
            return None
        self._waiters.remember(older)
        return older

    def estimate(self, receipt: Receipt) -> Estimate:
        partition, offset, index = receipt
        return self._rates.by_partition[partition].estimate(offset, index, self._waiters.last[partition])

    def log_end(self, partition: int) -> int:
        """The end of the command log, as known without asking Kafka."""
        return max(
            self._commits.ends[partition], self._ends.ends[partition], self._waiters.last[partition] + 1
        )

    def decided_offset(self, partition: int) -> int:
        return max(self._waiters.last[partition], self._rates.by_partition[partition].decided_offset)

    def _is_ahead_of_feed(self, partition: int, offset: int) -> bool:
        return self._feed.is_alive and self._waiters.is_ahead(partition, offset)

    async def _check_issued(self, receipt: Receipt) -> None:
        if receipt.offset < self.log_end(receipt.partition):
            return
        # Another ingress may have issued it a moment ago: only the broker knows.
        await self._ends.refresh()
        if receipt.offset >= self.log_end(receipt.partition):
            raise UnknownRequest(f"{receipt} is not a valid request id: no purchase has it")
