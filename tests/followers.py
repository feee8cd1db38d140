"""Followers in their own processes, and real decisions for them, without a decider."""

import json
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import yaml
from servers import Kafka

from pipeline.control.follower import CONTROL_PARTITION
from pipeline.domain.product import Opening
from pipeline.kafka.producer import LogProducer
from pipeline.kafka.topics import Topics, partition_of
from pipeline.local.listen import free_port
from pipeline.local.process import Process
from pipeline.local.recipe import follower_part
from pipeline.messages.breakers import BreakerChange, encode_breaker
from pipeline.messages.commands import OpenCommand, decode_command, encode_open
from pipeline.settings import Settings
from pipeline.stock.store import StockStore
from pipeline.stock.values import PreparedCommand

NO_REDIS = "redis://127.0.0.1:1/0"


def unique_topics_file(directory: Path) -> Path:
    """A `topics.yaml` whose topics have unique names."""
    document = yaml.safe_load((Path(__file__).parents[1] / "topics.yaml").read_text("utf-8"))
    suffix = uuid.uuid4().hex[:8]
    for topic in document["topics"].values():
        topic["name"] = f"{topic['name']}.{suffix}"
    path = directory / "topics.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    return path


class Follower(Process):
    """A follower process that tests start, kill and query. As a context manager, it is ready inside."""

    def __init__(self, name: str, kafka: Kafka, topics_file: Path, group_prefix: str) -> None:
        directory = topics_file.parent
        settings = Settings(
            **kafka.settings(),
            redis_url=NO_REDIS,
            topics_file=topics_file,
            group_prefix=group_prefix,
            worker_name=name,
            tables_port=free_port(),
            data_dir=directory / "data",
        )
        super().__init__(follower_part(settings), directory / "logs")

    def get(self, path: str, accept: str = "*/*") -> tuple[int, str, str]:
        """Status, media type and body."""
        request = Request(self.address + path, headers={"Accept": accept})  # noqa: S310 -- http only
        try:
            with urlopen(request, timeout=10) as answer:  # noqa: S310
                return answer.status, answer.headers.get_content_type(), answer.read().decode()
        except HTTPError as error:
            return error.code, error.headers.get_content_type(), error.read().decode()

    def json(self, path: str) -> tuple[int, dict[str, Any]]:
        status, _, body = self.get(path)
        return status, json.loads(body)

    def rows(self, table: str) -> dict[Any, dict[str, Any]]:
        """The rows of a table, by their key."""
        status, document = self.json(f"/tables/{table}")
        assert status == 200, document
        key = {"products": "product_id", "partitions": "partition"}[table]
        return {row[key]: row for row in document["rows"]}


class Decisions:
    """Writes commands and their decisions to both logs."""

    def __init__(self, topics: Topics, store: StockStore, producer: LogProducer) -> None:
        self.topics = topics
        self._store = store
        self._producer = producer
        self.written: dict[int, dict[int, bytes]] = {}
        """Decision records by partition and source offset."""

    def partition(self, product_id: str) -> int:
        return partition_of(product_id, self.topics.results.partitions)

    async def command(self, value: bytes) -> tuple[int, int]:
        """Write this command to the command log; returns partition and offset."""
        product_id = json.loads(value)["product_id"]
        partition = self.partition(product_id)
        return partition, await self._producer.send(
            self.topics.requests.name, partition, product_id.encode(), value
        )

    async def open(self, product_id: str, stock: int, name: str = "Phone") -> None:
        now_ms = round(time.time() * 1_000)
        opening = Opening(name, "9.90", stock, now_ms - 60_000, now_ms + 3_600_000)
        await self.decide(encode_open(OpenCommand(product_id, opening)))

    async def decide(self, *values: bytes) -> None:
        """Decide these commands of one partition, as the decider would."""
        now_ms = round(time.time() * 1_000)
        commands = []
        for value in values:
            partition, offset = await self.command(value)
            product_id = json.loads(value)["product_id"]
            assert decode_command(product_id.encode(), value).product_id == product_id
            commands.append(PreparedCommand(offset, now_ms, product_id, value))
        after = await self._store.cursor_offset(partition)
        records = await self._store.decide(partition, after, 0, commands)
        written = self.written.setdefault(partition, {})
        for command, record in zip(commands, records, strict=True):
            assert command.product_id is not None
            written[command.offset] = record
            await self.write(partition, command.product_id, record)

    async def write_breaker(self, news: BreakerChange) -> None:
        """Write to the control topic, as a decider does."""
        await self._producer.send(self.topics.control.name, CONTROL_PARTITION, *encode_breaker(news))

    async def write(self, partition: int, product_id: str, record: bytes) -> None:
        """Write a decision record, which may be a repeat, to the decision log."""
        name = self.topics.results.name
        await self._producer.send_all(name, partition, [(product_id.encode(), record)])
