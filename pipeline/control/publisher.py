"""Writes the newest states of a process to the control topic, each until it is acknowledged or a newer one comes."""

import asyncio
import logging
from typing import NamedTuple

from pipeline.control.follower import CONTROL_PARTITION
from pipeline.domain.backoff import Backoff
from pipeline.kafka.producer import Sender, SendFailed
from pipeline.kafka.topics import Topic
from pipeline.settings import Settings

logger = logging.getLogger(__name__)


class _State(NamedTuple):
    """`what` names it in the log."""

    what: str
    value: bytes


class StatePublisher:
    def __init__(self, topic: Topic, producer: Sender, settings: Settings) -> None:
        self._topic = topic.name
        self._producer = producer
        self._settings = settings
        self._unsent: dict[bytes, _State] = {}
        self._arrived = asyncio.Event()

    def publish(self, what: str, key: bytes, value: bytes) -> None:
        """Note the record of a state; `run` writes it, unless a newer one of the same key comes first."""
        self._unsent[key] = _State(what, value)
        self._arrived.set()

    async def run(self) -> None:
        """Write until cancelled."""
        backoff = Backoff(self._settings.backoff_ms_min, self._settings.backoff_ms_max)
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            for key, state in list(self._unsent.items()):
                try:
                    await self._producer.send(self._topic, CONTROL_PARTITION, key, state.value)
                except SendFailed as fault:
                    logger.warning("%s is not published yet: %s", state.what, fault)
                    self._arrived.set()
                    await asyncio.sleep(backoff.pause_ms() / 1_000)
                else:
                    backoff.reset()
                    if self._unsent.get(key) is state:
                        del self._unsent[key]
