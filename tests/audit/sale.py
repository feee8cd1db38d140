"""The sale of small_sale.py in real topics and a real Redis."""

import asyncio
from collections.abc import Sequence
from typing import Self

from redis import Redis

from audit.faults import Fault, Written, written
from audit.small_sale import PARTITION, PLAIN
from pipeline.decider.commit import commit
from pipeline.decider.intake import prepare
from pipeline.decider.ports import Keyed
from pipeline.decider.replay import Replay
from pipeline.followers import Progress
from pipeline.followers.ports import Derived
from pipeline.followers.writers import writer_of
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.records import LogRecord
from pipeline.kafka.topics import Topics
from pipeline.messages.commands import encode_purchases
from pipeline.settings import Settings
from pipeline.stock.store import StockStore
from pipeline.stock.values import PreparedCommand


class Sale:
    """An async context manager. `send` writes commands to the log, `decide` decides all undecided ones."""

    def __init__(self, settings: Settings, topics: Topics) -> None:
        self.settings = settings
        self.topics = topics
        self.store = StockStore(settings.redis(), settings.redis_timeout_ms)
        self.redis: Redis = Redis.from_url(settings.redis())
        self.log = LogReader(settings.kafka(), ends_are_exact=settings.kafka_idempotence)
        self.producer = LogProducer(settings, "test", idempotent=False)
        self.writer = writer_of(settings, topics, PARTITION)
        self.results_end = 0
        self.decided = -1
        self.records: list[bytes] = []
        """Every decision record, true or altered, by offset of its command."""

    async def __aenter__(self) -> Self:
        await self.producer.start()
        await self.writer.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.writer.close()
        await self.producer.stop()
        await self.store.close()
        self.redis.close()

    async def send(self, some: Sequence[Keyed]) -> None:
        await self.producer.send_all(self.topics.requests.name, PARTITION, some)

    async def followed(self, partition: int) -> int:
        """The position in the decision log up to which orders and dead letters are written."""
        return self.results_end

    async def decide(self, *, follow: bool = True) -> None:
        """Decide all undecided commands in one chunk, as a decider does, and write the derived records."""
        await self.decide_these(await self.requests(), follow=follow)

    async def decide_these(self, requests: Sequence[LogRecord], *, follow: bool = True) -> None:
        if prepared := await self.decide_in_redis(requests):
            decisions = [
                (None if each.product_id is None else each.product_id.encode(), record)
                for record, each in zip(self.records[-len(prepared) :], prepared, strict=True)
            ]
            self.results_end = await commit(self.producer, self.topics.results.name, PARTITION, decisions)
            if follow:
                records = [record for _, record in decisions]
                await self._follow(written(self.topics, requests, records, Fault(None)))

    async def decide_in_redis(self, requests: Sequence[LogRecord]) -> list[PreparedCommand]:
        """Decide these requests in Redis, without a commit."""
        prepared = [prepare(request) for request in requests]
        if prepared:
            self.records += await self.store.decide(PARTITION, self.decided, self.results_end, prepared)
            self.decided += len(prepared)
        return prepared

    async def decide_with_fault(self, fault: Fault) -> None:
        """Decide all undecided commands, but write the logs and Redis as `fault` alters them."""
        requests = await self.requests()
        await self.decide_in_redis(requests)
        altered = written(self.topics, requests, self.records, fault)
        self.records = altered.decisions
        end = 1 + await self.producer.send_all(self.topics.results.name, PARTITION, altered.results)
        self.results_end = end
        await self._follow(altered)
        await self.store.wipe(PARTITION, self.decided)
        await self.replay([request.key for request in requests])

    async def follow_all(self) -> None:
        """Write the derived records of all decisions; none may have been written before."""
        batches = self.log.read(self.topics.requests.name, PARTITION, 0)
        requests = [record async for batch in batches for record in batch]
        await self._follow(written(self.topics, requests, self.records, Fault(None)))

    async def _follow(self, decided: Written) -> None:
        """Write the derived records and the progress."""
        derived = [
            *(Derived(self.topics.orders.name, PARTITION, key, [order]) for key, order in decided.orders),
            *(
                Derived(self.topics.dead_letters.name, PARTITION, each.key, [each.value], each.headers)
                for each in decided.letters
            ),
        ]
        await self.writer.write(derived, Progress(self.results_end, self.decided))

    async def replay(self, product_keys: Sequence[bytes | None]) -> None:
        """Rebuild the empty Redis from the records."""
        replay = Replay(self.store, PARTITION, -1)
        for offset, (key, record) in enumerate(zip(product_keys, self.records, strict=True)):
            await replay.add(LogRecord(offset, 0, key, record))
        await replay.flush()

    async def requests(self) -> list[LogRecord]:
        """The undecided commands in the log."""
        batches = self.log.read(self.topics.requests.name, PARTITION, self.decided + 1)
        return [record async for batch in batches for record in batch]


async def keep_selling(sale: Sale, stop: asyncio.Event) -> int:
    """Sell until `stop` is set; return the number of commands."""
    count = 0
    while not stop.is_set():
        for _ in range(3):
            users = [f"live-{count}-{number}" for number in range(20)]
            await sale.send([(PLAIN.encode(), encode_purchases(PLAIN, users))])
            count += 1
        await sale.decide()
    return count
