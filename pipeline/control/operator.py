"""What an operator does with the control topic, directly in Kafka, so that it works even while no ingress runs.

Here the base of a setting comes from the operator's own environment and settings file.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from pipeline.control.follower import CONTROL_PARTITION, ControlFollower
from pipeline.control.live_settings import LiveSettings, describe_change
from pipeline.errors import KafkaUnavailable
from pipeline.kafka.connection import raise_if_refused
from pipeline.kafka.producer import LogProducer, Sender
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import Topic
from pipeline.messages.control import BadControlRecord
from pipeline.messages.settings import SettingChange, decode_setting, encode_setting, setting_key
from pipeline.settings import InForce, Settings

HISTORY_ENTRIES_MAX = 10_000
"""Only the newest are shown; another program may have written any number."""
ORIGIN = "operator"
"""The `origin` header of the records that the command line writes."""


class Entry(NamedTuple):
    """A record of the control topic about a setting. One that every process refuses has no change, but a reason."""

    offset: int
    change: SettingChange | None
    refusal: str | None = None

    def document(self) -> dict[str, Any]:
        """The entry in JSON."""
        if self.change is None:
            return {"offset": self.offset, "refused": self.refusal}
        value = {"value": self.change.value} if self.change.is_set else {}
        return {
            "name": self.change.name,
            "set": self.change.is_set,
            **value,
            **describe_change(self.offset, self.change),
        }


async def read_settings(settings: Settings, topic: Topic) -> LiveSettings:
    """What is in force according to the topic. Raises KafkaUnavailable, SignInRefused and NewerFormat."""
    in_force = InForce(settings)
    live = LiveSettings(in_force)
    await _read(ControlFollower(in_force, topic, [live.take]), settings)
    return live


async def read_history(settings: Settings, topic: Topic, name: str | None = None) -> list[Entry]:
    """All changes in the topic, oldest first, or those of one setting.

    Raises KafkaUnavailable, SignInRefused and NewerFormat.
    """
    entries: deque[Entry] = deque(maxlen=HISTORY_ENTRIES_MAX)
    key = None if name is None else setting_key(name)
    in_force = InForce(settings)
    taker = _noting(LiveSettings(in_force), entries.append, key)
    await _read(ControlFollower(in_force, topic, [taker]), settings)
    return list(entries)


async def watch(settings: Settings, topic: Topic, say: Callable[[Entry], None]) -> None:
    """Report each further change until cancelled.

    Raises NewerFormat and, if the start fails, KafkaUnavailable and SignInRefused.
    """
    in_force = InForce(settings)
    begun = False

    def note(entry: Entry) -> None:
        if begun:
            say(entry)

    follower = ControlFollower(in_force, topic, [_noting(LiveSettings(in_force), note, None)])
    await _read(follower, settings)
    begun = True
    await follower.run()


async def write_setting(producer: Sender, topic: Topic, change: SettingChange) -> int:
    """The offset of the record, once the log has acknowledged it. Raises SendFailed."""
    return await producer.send(topic.name, CONTROL_PARTITION, *encode_setting(change))


async def write_once(settings: Settings, topic: Topic, change: SettingChange) -> int:
    """The same, with a producer of its own."""
    producer = LogProducer(settings, ORIGIN, idempotent=settings.kafka_idempotence)
    await producer.start()
    try:
        return await write_setting(producer, topic, change)
    finally:
        await producer.stop()


async def _read(follower: ControlFollower, settings: Settings) -> None:
    """Read the topic to its end. Raises KafkaUnavailable, SignInRefused and NewerFormat."""
    try:
        await follower.catch_up()
    except KafkaUnavailable:
        await raise_if_refused(settings.kafka())
        raise


def _noting(
    live: LiveSettings, note: Callable[[Entry], object], key: bytes | None
) -> Callable[[LogRecord], None]:
    """Applies the records to `live`, and notes those about a setting, or about that of this key."""

    def take(record: LogRecord) -> None:
        is_noted = key is None or record.key == key
        try:
            live.take(record)
        except BadControlRecord as error:
            if is_noted:
                note(Entry(record.offset, None, str(error)))
            raise
        change = decode_setting(record.key, record.value)
        if is_noted and change is not None:
            note(Entry(record.offset, change))

    return take
