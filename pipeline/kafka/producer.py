"""The Kafka producer: takes a record and returns its offset once every in-sync replica has it.

There are two outcomes: an offset (the record is in the log, at that offset), or `SendFailed` (it may be in the log, now
or a moment later, unless the message says that it was not sent). Callers may cancel a `send` or put a timeout around it
at any moment; that abandons the outcome, not the record.

An idempotent aiokafka producer that has lost a batch for good refuses all later ones, because its sequence has a gap.
So a session (one aiokafka producer) that failed a record is retired, and the next record goes through a new one.
Records that are pending in the old session can still be acknowledged for `SESSION_END_MS`.

Without idempotence (the in-memory broker) a retry could append a purchase twice, so there are no retries.
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
from pipeline.kafka.connection import client_options
from pipeline.kafka.record_format import record_headers
from pipeline.settings import Settings

BATCH_BYTES_MAX = 1_048_576
"""A topic with Kafka's default `max.message.bytes` refuses larger batches."""
RECORD_BYTES_MAX = 2_000_000
"""Limit on key, value and headers of a record: results and dead letters contain a whole command record. It is below
their `record_bytes_max` in `topics.yaml` by more than what Kafka adds."""
REQUEST_TIMEOUT_MS = 10_000
"""Also the longest time that a record waits for room in the current batch, or for a topic that does not exist."""
START_TIMEOUT_MS = 30_000
SESSION_OPEN_MS_MAX = 30_000
SESSION_PAUSE_MS_MIN = 100
"""Minimum time between the starts of two sessions, so that a broker that refuses everything is not flooded."""
SESSION_END_MS = 3_000

logger = logging.getLogger(__name__)

Header = tuple[str, bytes]


class SendFailed(Unavailable):
    """No acknowledgement arrived; the message says what is known about the record."""


class Sender(Protocol):
    """The part of LogProducer that most callers need. Returns an acknowledged record's offset; raises SendFailed."""

    async def send(self, topic: str, partition: int, key: bytes | None, value: bytes) -> int: ...


@dataclass(eq=False, slots=True)
class _Session:
    """One aiokafka producer, each (topic, partition) that it knows, and its pending acknowledgements."""

    producer: AIOKafkaProducer
    known: set[tuple[str, int]] = field(default_factory=set)
    pending: set[asyncio.Future[Any]] = field(default_factory=set)


class LogProducer:
    """Sends records to given partitions and waits for `acks=all`. For one event loop and any number of tasks.

    `origin` names this process in the `origin` header of every record.
    """

    def __init__(self, settings: Settings, origin: str, *, idempotent: bool) -> None:
        self._settings = settings
        self._origin = origin
        # A list, because aiokafka's compiled record writer accepts nothing else.
        self._headers = list(record_headers(origin))
        self._idempotent = idempotent
        self._session: _Session | None = None
        self._opening: asyncio.Task[_Session] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._opened_at_s = 0.0
        self._runs = False

    async def start(self, timeout_ms: int = START_TIMEOUT_MS) -> None:
        """Connect, with retries while Kafka is unavailable; raises SendFailed after `timeout_ms`."""
        self._session = await self._open(timeout_ms)
        self._runs = True

    async def stop(self) -> None:
        """Wait about `SESSION_END_MS` at most for pending acknowledgements, then fail the rest and close."""
        self._runs = False
        if self._opening is not None:
            self._opening.cancel()
        if self._session is not None:
            self._retire(self._session)
        await asyncio.gather(*self._ending)

    async def send(
        self, topic: str, partition: int, key: bytes | None, value: bytes, headers: Sequence[Header] = ()
    ) -> int:
        """The offset of this record, once acknowledged. `headers` follow our own. Raises SendFailed."""
        _check_size(topic, key, value, headers)
        session = self._session or await self._next_session()
        try:
            if (topic, partition) not in session.known:
                await self._require_partition(session, topic, partition)
            acknowledged = await session.producer.send(
                topic, value, key, partition, headers=[*self._headers, *headers] if headers else self._headers
            )
        except KafkaError as error:
            raise self._not_taken(session, topic, partition, error) from error
        return await self._acknowledgement(session, acknowledged, topic, partition)

    async def send_all(
        self, topic: str, partition: int, records: Sequence[tuple[bytes | None, bytes]]
    ) -> int:
        """The offset of the last of these (key, value) records, which are appended in order; -1 for no records.

        They go in batches of up to `BATCH_BYTES_MAX`, each acknowledged before the next is sent. So after SendFailed
        the log contains a prefix of them (whose last batch may still arrive).
        """
        for key, value in records:
            _check_size(topic, key, value, ())
        last_offset, sent = -1, 0
        while sent < len(records):
            session = self._session or await self._next_session()
            batch = self._batch(session, records, sent)
            try:
                if (topic, partition) not in session.known:
                    await self._require_partition(session, topic, partition)
                acknowledged = await session.producer.send_batch(batch, topic, partition=partition)
            except KafkaError as error:
                raise self._not_taken(session, topic, partition, error) from error
            count = batch.record_count()
            last_offset = await self._acknowledgement(session, acknowledged, topic, partition) + count - 1
            sent += count
        return last_offset

    def _batch(self, session: _Session, records: Sequence[tuple[bytes | None, bytes]], first: int) -> Any:
        """A batch of as many records as fit, from index `first` on."""
        batch = session.producer.create_batch()
        timestamp_ms = int(time.time() * 1_000)
        for index in range(first, len(records)):
            key, value = records[index]
            if batch.append(key=key, value=value, timestamp=timestamp_ms, headers=self._headers) is None:
                break
        batch.close()
        return batch

    async def _require_partition(self, session: _Session, topic: str, partition: int) -> None:
        """Raises SendFailed for a partition that the topic does not have; aiokafka would fail an assertion."""
        try:
            partitions = await asyncio.wait_for(
                # aiokafka has the same limit for a topic that does not exist, but none for a session that ends.
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
        session.pending.add(acknowledged)
        try:
            offset: int = (await acknowledged).offset
        except KafkaError as error:
            self._fail(session, error)
            raise SendFailed(f"{topic}/{partition}: {error!r}; the record may be in the log") from error
        finally:
            session.pending.discard(acknowledged)
        if offset < 0:
            # The broker recognised the batch as a duplicate, but no longer knows the offset of the original.
            raise SendFailed(f"{topic}/{partition}: the record is in the log, but its offset is not known")
        return offset

    def _not_taken(self, session: _Session, topic: str, partition: int, error: KafkaError) -> SendFailed:
        """What to raise for a record that aiokafka did not accept; it is not in the log and never will be."""
        # These concern the topic or the load; after any other error the session is unusable.
        if not isinstance(
            error, KafkaTimeoutError | UnknownTopicOrPartitionError | TopicAuthorizationFailedError
        ):
            self._fail(session, error)
        return SendFailed(f"{topic}/{partition}: {error!r}; the record was not sent")

    # --- sessions --------------------------------------------------------------------------------

    async def _next_session(self) -> _Session:
        """The session after one that failed; all callers that wait for it share one attempt."""
        if not self._runs:
            raise SendFailed("the producer is not running; the record was not sent")
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._reopen())
        try:
            return await asyncio.shield(self._opening)
        except SendFailed as error:
            raise SendFailed(f"{error}; the record was not sent") from None
        except asyncio.CancelledError:
            if not self._opening.cancelled():
                raise  # the caller was cancelled, not the attempt
            raise SendFailed("the producer was stopped; the record was not sent") from None

    async def _reopen(self) -> _Session:
        early_s = self._opened_at_s + SESSION_PAUSE_MS_MIN / 1_000 - time.monotonic()
        await asyncio.sleep(max(0.0, early_s))
        self._session = await self._open(SESSION_OPEN_MS_MAX)
        logger.warning("producer %s: started a new session", self._origin)
        return self._session

    async def _open(self, timeout_ms: int) -> _Session:
        backoff = Backoff(self._settings.backoff_ms_min, self._settings.backoff_ms_max)
        last_error: BaseException | None = None
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                while True:
                    try:
                        return await self._connect()
                    except (IncompatibleBrokerVersion, UnsupportedVersionError) as error:
                        raise SendFailed(f"Kafka at {self._settings.kafka()}: {error!r}") from error
                    except (KafkaError, OSError) as error:
                        last_error = error
                    logger.warning(
                        "Kafka at %s does not accept a producer yet: %r", self._settings.kafka(), last_error
                    )
                    await asyncio.sleep(backoff.pause_ms() / 1_000)
        except TimeoutError:
            raise SendFailed(
                f"Kafka at {self._settings.kafka()} did not accept a producer within {timeout_ms} ms"
                + (f": {last_error!r}" if last_error else "")
                + self._hint(last_error)
            ) from last_error

    def _hint(self, last_error: BaseException | None) -> str:
        if self._idempotent and isinstance(last_error, UnknownError):
            return " (a broker without idempotent producers needs SECKILL_KAFKA_IDEMPOTENCE=false)"
        return ""

    async def _connect(self) -> _Session:
        producer = AIOKafkaProducer(
            **client_options(self._settings.kafka()),
            client_id=f"seckill-{self._origin}",
            acks="all",
            enable_idempotence=self._idempotent,
            linger_ms=0,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=2 * RECORD_BYTES_MAX,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        if not self._idempotent:
            # aiokafka retries until a batch is too old; it has no setting for "never".
            producer._message_accumulator._batch_ttl = -1.0
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        self._opened_at_s = time.monotonic()
        return _Session(producer)

    def _fail(self, session: _Session, error: KafkaError) -> None:
        """Retire the session that failed a record, unless an earlier failure has retired it."""
        if self._session is session:
            logger.error("producer %s: a record failed, ending the session: %r", self._origin, error)
            self._retire(session)

    def _retire(self, session: _Session) -> None:
        self._session = None
        task = asyncio.create_task(self._end(session))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, session: _Session) -> None:
        """Wait `SESSION_END_MS` for pending acknowledgements, then fail the rest."""

        def give_up() -> None:
            logger.error(
                "producer %s: giving up on %d unacknowledged records", self._origin, len(session.pending)
            )
            for acknowledged in session.pending:
                if not acknowledged.done():
                    acknowledged.set_exception(KafkaTimeoutError())

        if error := await end_producer(session.producer, SESSION_END_MS, give_up):
            logger.warning("producer %s: could not close a session cleanly: %r", self._origin, error)


async def end_producer(
    producer: AIOKafkaProducer, grace_ms: int, give_up: Callable[[], None] = lambda: None
) -> BaseException | None:
    """Stop an aiokafka producer, which on its own waits forever for an unavailable broker.

    `give_up` is called once pending records can no longer arrive. Returns what the stop raised, if anything. Takes up
    to twice `grace_ms`.
    """
    closing = asyncio.ensure_future(producer.stop())
    await asyncio.wait({closing}, timeout=grace_ms / 1_000)
    if not closing.done():
        give_up()
        # stop() waits for batches that never expire, or for its own sender; once that has ended, it continues.
        sender = producer._sender.sender_task
        while not sender.done():
            sender.cancel()
            await asyncio.wait({sender}, timeout=SESSION_PAUSE_MS_MIN / 1_000)
        await asyncio.wait({closing}, timeout=grace_ms / 1_000)
    return closing.exception() if closing.done() and not closing.cancelled() else None


def _check_size(topic: str, key: bytes | None, value: bytes, headers: Sequence[Header]) -> None:
    """Raises SendFailed for a record that the broker would refuse: a refusal would cost the session."""
    size = len(value) + (len(key) if key else 0)
    for name, content in headers:
        size += len(name) + len(content)
    if size > RECORD_BYTES_MAX:
        raise SendFailed(
            f"{topic}: the record has {size} bytes, the limit is {RECORD_BYTES_MAX}; it was not sent"
        )
