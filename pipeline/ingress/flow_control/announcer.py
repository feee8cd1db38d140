"""Writes the newest state of this process to the control topic, until it is acknowledged."""

import asyncio
import logging

from pipeline.control.follower import CONTROL_PARTITION
from pipeline.domain.backoff import Backoff
from pipeline.kafka.producer import Sender, SendFailed
from pipeline.messages.degradation import DegradationChange, encode_degradation
from pipeline.settings import Settings

logger = logging.getLogger(__name__)


class Announcer:
    def __init__(self, topic: str, producer: Sender, settings: Settings) -> None:
        self._topic = topic
        self._producer = producer
        self._settings = settings
        self._unsent: DegradationChange | None = None
        self._arrived = asyncio.Event()

    def announce(self, change: DegradationChange) -> None:
        """Note a state; `run` writes it, unless a newer one comes first."""
        self._unsent = change
        self._arrived.set()

    async def run(self) -> None:
        """Write until cancelled."""
        backoff = Backoff(self._settings.backoff_ms_min, self._settings.backoff_ms_max)
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            change = self._unsent
            if change is None:
                continue
            try:
                await self._producer.send(self._topic, CONTROL_PARTITION, *encode_degradation(change))
            except SendFailed as fault:
                logger.warning("degradation stage %d is not published yet: %s", change.stage, fault)
                await asyncio.sleep(backoff.pause_ms() / 1_000)
                self._arrived.set()
            else:
                backoff.reset()
                if self._unsent is change:
                    self._unsent = None
