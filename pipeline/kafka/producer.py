"""The one Kafka producer: a record in, its offset out once every in-sync replica has it.

An answer is one of two: an offset (the record is in the log, at that place), or `SendFailed` (it may be in
the log, now or a moment later, unless the message says that it was not sent). Callers may cancel a `send` or
put a time-out around it at any moment; that gives up the answer, not the record.

An idempotent aiokafka producer that lost one batch for good refuses all that follow: its sequence has a gap.
So a session (one aiokafka producer) that failed a record is retired, and the next record goes through a new
one. The records that the old one still has keep their chance for `SESSION_END_MS`.

Without idempotence (the in-memory broker) a retry could put a purchase into the log twice, so there is none.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
    UnknownError,
    UnknownTopicOrPartitionError,
    UnsupportedVersionError,
)

from pipeline.domain.backoff import Backoff
from pipeline.errors import Unavailable
from pipeline.kafka.record_format import record_headers
from pipeline.settings import Settings

BATCH_BYTES_MAX = 1_048_576
"""A batch that is larger would be refused by a topic with Kafka's default `max.message.bytes`."""
RECORD_BYTES_MAX = 2_000_000
"""Key, value and headers of the largest record: results and dead letters hold a whole command record.
Below their `record_bytes_max` in `topics.yaml`, by more than what Kafka adds."""
REQUEST_TIMEOUT_MS = 10_000
"""Also the longest wait of a record for room in the batch before it, and for a topic that is not there."""
START_TIMEOUT_MS = 30_000
SESSION_OPEN_MS_MAX = 30_000
SESSION_PAUSE_MS_MIN = 100
"""At least this long from one session to the next: a broker that refuses everything must not be stormed."""
SESSION_END_MS = 3_000

logger = logging.getLogger(__name__)

Header = tuple[str, bytes]


class SendFailed(Unavailable):
    """No acknowledgement came; the message says what is known of the record."""


class Sender(Protocol):
    """What most callers need of LogProducer: the offset of a record once it is acknowledged. Raises SendFailed."""

    async def send(self, topic: str, partition: int, key: bytes | None, value: bytes) -> int: ...


@dataclass(eq=False, slots=True)
class _Session:
    """One aiokafka producer, the (topic, partition) that it knows, and the acknowledgements that it owes."""

    producer: AIOKafkaProducer
    known: set[tuple[str, int]] = field(default_factory=set)
    owed: set[asyncio.Future[Any]] = field(default_factory=set)


class LogProducer:
    """Sends records to named partitions and waits for `acks=all`. One event loop, any number of tasks.

    `origin` names this process in the `origin` header of every record.
    """

    def __init__(self, settings: Settings, origin: str, *, idempotent: bool) -> None:
        self._settings = settings
        self._origin = origin
        # A list, because aiokafka's compiled record writer takes nothing else.
        self._headers = list(record_headers(origin))
        self._idempotent = idempotent
        self._session: _Session | None = None
        self._opening: asyncio.Task[_Session] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._opened_at_s = 0.0
        self._runs = False

    async def start(self, timeout_ms: int = START_TIMEOUT_MS) -> None:
        """Connect, with retries while Kafka is away; raises SendFailed after `timeout_ms`."""
        self._session = await self._open(timeout_ms)
        self._runs = True

    async def stop(self) -> None:
        """Wait for what is owed, at most about `SESSION_END_MS`; then fail the rest and close."""
        self._runs = False
        if self._opening is not None:
            self._opening.cancel()
        if self._session is not None:
            self._retire(self._session)
        await asyncio.gather(*self._ending)

    async def send(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Sequence[Header] = ()
    ) -> int:
        """The offset of this record, once acknowledged. `headers` come after our own. Raises SendFailed."""
        _check_size(topic, key, value, headers)
        session = self._session or await self._next_session()
        try:
            if (topic, partition) not in session.known:
                await self._look_up(session, topic, partition)
            acknowledged = await session.producer.send(
                topic, value, key, partition, headers=[*self._headers, *headers] if headers else self._headers
            )
        except KafkaError as error:
            raise self._not_taken(session, topic, partition, error) from error
        return await self._acknowledgement(session, acknowledged, topic, partition)

    async def send_all(
        self, topic: str, partition: int, records: Sequence[tuple[bytes | None, bytes]]
    ) -> int:
        """The offset of the last of these (key, value) records, in their order; -1 for no records.

        They go in batches of up to `BATCH_BYTES_MAX`, each acknowledged before the next is sent: when this
        raises SendFailed, what is in the log is a prefix (whose last batch may come late).
        """
        for key, value in records:
            _check_size(topic, key, value, ())
        last_offset, sent = -1, 0
        while sent < len(records):
            session = self._session or await self._next_session()
            batch = self._batch(session, records, sent)
            try:
                if (topic, partition) not in session.known:
                    await self._look_up(session, topic, partition)
                acknowledged = await session.producer.send_batch(batch, topic, partition=partition)
            except KafkaError as error:
                raise self._not_taken(session, topic, partition, error) from error
            count = batch.record_count()
            last_offset = await self._acknowledgement(session, acknowledged, topic, partition) + count - 1
            sent += count
        return last_offset

    def _batch(self, session: _Session, records: Sequence[tuple[bytes | None, bytes]], first: int) -> Any:
        """A batch of as many records as it holds, from index `first` on."""
        batch = session.producer.create_batch()
        timestamp_ms = int(time.time() * 1_000)
        for index in range(first, len(records)):
            key, value = records[index]
            if batch.append(key=key, value=value, timestamp=timestamp_ms, headers=self._headers) is None:
                break
        batch.close()
        return batch

    async def _look_up(self, session: _Session, topic: str, partition: int) -> None:
        """Raises SendFailed for a partition that the topic has not; aiokafka would only assert it."""
        try:
            partitions = await asyncio.wait_for(
                # aiokafka has the same limit for a topic that is not there, but none for a session that ends.
                session.producer.partitions_for(topic),
                2 * REQUEST_TIMEOUT_MS / 1_000,
            )
        except TimeoutError:
            raise KafkaTimeoutError(f"no metadata within {2 * REQUEST_TIMEOUT_MS} ms") from None
        if partition not in partitions:
            raise SendFailed(
                f"{topic} has no partition {partition}, only {len(partitions)}; the record was not sent"
            )
        session.known.add((topic, partition))

    async def _acknowledgement(
        self, session: _Session, acknowledged: asyncio.Future[Any], topic: str, partition: int
    ) -> int:
        session.owed.add(acknowledged)
        try:
            offset: int = (await acknowledged).offset
        except KafkaError as error:
            self._fail(session, error)
            raise SendFailed(f"{topic}/{partition}: {error!r}; the record may be in the log") from error
        finally:
            session.owed.discard(acknowledged)
        if offset < 0:
            # The broker knew the batch as a repeat, but no longer where the first one is.
            raise SendFailed(f"{topic}/{partition}: the record is in the log, but its offset is not known")
        return offset

    def _not_taken(self, session: _Session, topic: str, partition: int, error: KafkaError) -> SendFailed:
        """What to raise for a record that aiokafka did not take; it is not in the log and never will be."""
        # These speak of the topic or of the load; anything else means that the session is over.
        if not isinstance(
            error, KafkaTimeoutError | UnknownTopicOrPartitionError | TopicAuthorizationFailedError
        ):
            self._fail(session, error)
        return SendFailed(f"{topic}/{partition}: {error!r}; the record was not sent")

    # --- sessions --------------------------------------------------------------------------------

    async def _next_session(self) -> _Session:
        """The session after one that failed; all who wait for it share one attempt."""
        if not self._runs:
            raise SendFailed("the producer does not run; the record was not sent")
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._reopen())
        try:
            return await asyncio.shield(self._opening)
        except SendFailed as error:
            raise SendFailed(f"{error}; the record was not sent") from None
        except asyncio.CancelledError:
            if not self._opening.cancelled():
                raise  # it was the caller who was cancelled, not the attempt
            raise SendFailed("the producer was stopped; the record was not sent") from None

    async def _reopen(self) -> _Session:
        early_s = self._opened_at_s + SESSION_PAUSE_MS_MIN / 1_000 - time.monotonic()
        await asyncio.sleep(max(0.0, early_s))
        self._session = await self._open(SESSION_OPEN_MS_MAX)
        logger.warning("the producer %s goes on with a new session", self._origin)
        return self._session

    async def _open(self, timeout_ms: int) -> _Session:
        backoff = Backoff(self._settings.backoff_ms_min, self._settings.backoff_ms_max)
        trouble: BaseException | None = None
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                while True:
                    try:
                        return await self._connect()
                    except (IncompatibleBrokerVersion, UnsupportedVersionError) as error:
                        raise SendFailed(f"Kafka at {self._settings.kafka()}: {error!r}") from error
                    except (KafkaError, OSError) as error:
                        trouble = error
                    logger.warning("Kafka at %s takes no producer yet: %r", self._settings.kafka(), trouble)
                    await asyncio.sleep(backoff.pause_ms() / 1_000)
        except TimeoutError:
            raise SendFailed(
                f"Kafka at {self._settings.kafka()} took no producer within {timeout_ms} ms"
                + (f": {trouble!r}" if trouble else "")
                + self._hint(trouble)
            ) from trouble

    def _hint(self, trouble: BaseException | None) -> str:
        if self._idempotent and isinstance(trouble, UnknownError):
            return " (a broker without idempotent producers needs SECKILL_KAFKA_IDEMPOTENCE=false)"
        return ""

    async def _connect(self) -> _Session:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._settings.kafka(),
            client_id=f"seckill-{self._origin}",
            acks="all",
            enable_idempotence=self._idempotent,
            linger_ms=0,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=2 * RECORD_BYTES_MAX,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        if not self._idempotent:
            # aiokafka tries again until a batch is too old; it has no setting for "never".
            producer._message_accumulator._batch_ttl = -1.0
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        self._opened_at_s = time.monotonic()
        return _Session(producer)

    def _fail(self, session: _Session, error: KafkaError) -> None:
        """Retire the session that failed a record, unless another of its records was first."""
        if self._session is session:
            logger.error("the producer %s lost a record, its session ends: %r", self._origin, error)
            self._retire(session)

    def _retire(self, session: _Session) -> None:
        self._session = None
        task = asyncio.create_task(self._end(session))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, session: _Session) -> None:
        """Give what is owed `SESSION_END_MS` to be acknowledged, then fail it."""

        def give_up() -> None:
            logger.error("the producer %s gives up %d records", self._origin, len(session.owed))
            for acknowledged in session.owed:
                if not acknowledged.done():
                    acknowledged.set_exception(KafkaTimeoutError())

        if error := await end_producer(session.producer, SESSION_END_MS, give_up):
            logger.warning("the producer %s ended a session badly: %r", self._origin, error)


async def end_producer(
    producer: AIOKafkaProducer, grace_ms: int, give_up: Callable[[], None] = lambda: None
) -> BaseException | None:
    """Stop an aiokafka producer, which by itself waits for ever for a broker that is away.

    `give_up` hears that what is on its way will not arrive. Returns what the stop raised. Takes `grace_ms` twice.
    """
    closing = asyncio.ensure_future(producer.stop())
    await asyncio.wait({closing}, timeout=grace_ms / 1_000)
    if not closing.done():
        give_up()
        # stop() waits for batches that never expire, or for its own sender; without that one it goes on.
        sender = producer._sender.sender_task
        while not sender.done():
            sender.cancel()
            await asyncio.wait({sender}, timeout=SESSION_PAUSE_MS_MIN / 1_000)
        await asyncio.wait({closing}, timeout=grace_ms / 1_000)
    return closing.exception() if closing.done() and not closing.cancelled() else None


def _check_size(topic: str, key: bytes | None, value: bytes, headers: Sequence[Header]) -> None:
    """Refuses with SendFailed what the broker would refuse: that would cost the session."""
    size = len(value) + (len(key) if key else 0)
    for name, content in headers:
        size += len(name) + len(content)
    if size > RECORD_BYTES_MAX:
        raise SendFailed(
            f"{topic}: a record of {size} bytes, the limit is {RECORD_BYTES_MAX}; it was not sent"
        )
