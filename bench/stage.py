"""What the benchmarks run on: a broker, a Redis and our own processes, on ports of their own, in a temporary place."""

import asyncio
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cpu import pid_of

from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import Topics, load_topics
from pipeline.local.broker import choose, start_of
from pipeline.local.listen import answers_ok, free_port
from pipeline.local.process import Part, Process
from pipeline.local.redis import redis_part
from pipeline.settings import Profile, Settings


@dataclass(frozen=True, slots=True)
class Stage:
    """Broker and Redis, running; `environment` is what our processes must be told of them."""

    settings: Settings
    topics: Topics
    directory: Path
    environment: Mapping[str, str]
    redis: Process
    broker: Process

    def servers(self) -> dict[str, list[int]]:
        """The process ids of what we did not write and yet pay for, by role."""
        return {"kafka": [pid_of(self.broker)], "redis": [pid_of(self.redis)]}

    def worker(self, number: int = 1, **settings: object) -> Process:
        return self._process(f"worker-{number}", ("agents", "decider"), free_port(), "/ready", settings)

    def follower(self) -> Process:
        return self._process("follower-1", ("agents", "follower"), free_port(), "/ready", {})

    def ingress(self, number: int, public_port: int, admin_port: int, **settings: object) -> Process:
        health_port = free_port()
        settings |= {"public_port": public_port, "admin_port": admin_port, "health_port": health_port}
        return self._process(
            f"ingress-{number}", ("pipeline.ingress",), health_port, "/health/ready", settings
        )

    def _process(
        self, name: str, module: tuple[str, ...], port: int, path: str, settings: Mapping[str, object]
    ) -> Process:
        environment = {
            **self.environment,
            "SECKILL_WORKER_NAME": name,
            "SECKILL_TABLES_PORT": str(port),
            **{f"SECKILL_{key.upper()}": str(value) for key, value in settings.items()},
        }
        part = Part(
            name,
            f"http://127.0.0.1:{port}",
            (sys.executable, "-m", *module),
            lambda: answers_ok("127.0.0.1", port, path),
            environment,
        )
        return Process(part, self.directory / "logs")


@contextmanager
def stage(libs: Path) -> Iterator[Stage]:
    """A fresh broker (durable as in `seckill up`) and a fresh Redis; `libs` is where Kafka's jars are or go."""
    with tempfile.TemporaryDirectory(prefix="seckill-bench-") as name:
        directory = Path(name)
        settings = Settings(data_dir=directory, kafka_port=free_port(), kafka_libs_dir=libs)
        broker = start_of(choose(settings), settings, say=lambda line: print(line, file=sys.stderr))
        assert broker.part is not None
        redis = Process(redis_part(directory / "redis", free_port()), directory / "logs")
        with Process(broker.part, directory / "logs") as kafka, redis:
            own = settings.model_copy(
                update={"kafka_bootstrap": broker.bootstrap, "redis_url": redis.address}
            )
            topics = load_topics(Profile.LOCAL)
            asyncio.run(create_topics(broker.bootstrap, topics))
            environment = {
                **broker.environment(),
                "SECKILL_REDIS_URL": redis.address,
                "SECKILL_DATA_DIR": str(directory),
            }
            yield Stage(own, topics, directory, environment, redis, kafka)
