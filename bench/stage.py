"""What the benchmarks run on: a broker, a Redis and our own processes, on free ports, in a temporary directory."""

import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cpu import pid_of

from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import Topics, load_topics
from pipeline.local.broker import prepare_broker, resolve_kind
from pipeline.local.listen import free_port
from pipeline.local.process import Part, Process
from pipeline.local.recipe import follower_part, ingress_part, worker_part
from pipeline.local.redis import redis_part
from pipeline.settings import Profile, Settings


@dataclass(frozen=True, slots=True)
class Stage:
    """A running broker and Redis; `settings` are for every process that uses them."""

    settings: Settings
    topics: Topics
    directory: Path
    redis: Process
    broker: Process

    def servers(self) -> dict[str, list[int]]:
        """The process ids of broker and Redis by role: their CPU time counts, too."""
        return {"kafka": [pid_of(self.broker)], "redis": [pid_of(self.redis)]}

    def worker(self, number: int = 1, **settings: object) -> Process:
        return self._process(worker_part, f"worker-{number}", tables_port=free_port(), **settings)

    def follower(self) -> Process:
        return self._process(follower_part, "follower-1", tables_port=free_port())

    def ingress(self, number: int, **settings: object) -> Process:
        return self._process(ingress_part, f"ingress-{number}", health_port=free_port(), **settings)

    def _process(self, part: Callable[[Settings], Part], name: str, **settings: object) -> Process:
        own = self.settings.model_copy(update={"worker_name": name, **settings})
        return Process(part(own), self.directory / "logs")


@contextmanager
def stage(libs: Path) -> Iterator[Stage]:
    """A fresh broker (durable as in `seckill up`) and a fresh Redis; `libs` is the directory of Kafka's jars."""
    with tempfile.TemporaryDirectory(prefix="seckill-bench-") as name:
        directory = Path(name)
        settings = Settings(data_dir=directory, kafka_port=free_port(), kafka_libs_dir=libs)
        broker = prepare_broker(
            resolve_kind(settings), settings, say=lambda line: print(line, file=sys.stderr)
        )
        assert broker.part is not None
        redis = Process(redis_part(directory / "redis", free_port()), directory / "logs")
        with Process(broker.part, directory / "logs") as kafka, redis:
            own = settings.model_copy(update={**broker.settings(), "redis_url": redis.address})
            topics = load_topics(Profile.LOCAL)
            asyncio.run(create_topics(own.kafka(), topics))
            yield Stage(own, topics, directory, redis, kafka)
