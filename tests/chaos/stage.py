"""The whole system, each process under the runner's thumb: our own processes beside a given broker and Redis."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.audit.report import Check
from pipeline.local.listen import answers_ok, free_port
from pipeline.local.process import Part, Process
from pipeline.settings import Settings

START_TIMEOUT_S = 90.0


class Stage:
    """As a context manager: everything runs inside. `kafka` and `redis` have kill(), start(), pause(), resume()."""

    def __init__(self, directory: Path, kafka: Any, redis: Any) -> None:
        self.kafka, self.redis = kafka, redis
        self.public_port, self.admin_port = free_port(), free_port()
        self.settings = Settings(
            **kafka.settings(),
            data_dir=directory,
            redis_url=redis.url,
            public_port=self.public_port,
            admin_port=self.admin_port,
        )
        self._logs = directory / "logs"
        environment = {
            "SECKILL_DATA_DIR": str(directory),
            "SECKILL_REDIS_URL": redis.url,
            "SECKILL_PUBLIC_PORT": str(self.public_port),
            "SECKILL_ADMIN_PORT": str(self.admin_port),
            # A stock that is sold at once would be a single transaction.
            "SECKILL_ORDERS_PACE_MS": "20",
            **{f"SECKILL_{name.upper()}": str(value) for name, value in kafka.settings().items()},
        }
        health_port = free_port()
        self.ingress = self._process(
            "ingress-1",
            ("pipeline.ingress",),
            health_port,
            "/health/ready",
            {**environment, "SECKILL_HEALTH_PORT": str(health_port)},
        )
        self.follower = self._agent("follower-1", "follower", environment)
        self.second_follower = self._agent("follower-2", "follower", environment)
        self.worker = self._agent("worker-1", "decider", environment)
        self.second_worker = self._agent("worker-2", "decider", environment)
        self._worker_settings: Mapping[str, object] = {}
        self.foreign: Counter[tuple[Check, int]] = Counter()
        """By check and partition: records in its log that a fault wrote, and that the audit has to tell of."""

    @property
    def public(self) -> str:
        return f"http://127.0.0.1:{self.public_port}"

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def pair(self, victim: str) -> tuple[Process, Process]:
        """The "worker" or the "follower", and the one that can take over from it."""
        if victim == "worker":
            return self.worker, self.second_worker
        return self.follower, self.second_follower

    def tell_workers(self, settings: Mapping[str, object]) -> None:
        """Let the workers have these settings, and no others of before; the one that runs is started again."""
        if settings == self._worker_settings:
            return
        names = [f"SECKILL_{name.upper()}" for name in self._worker_settings]
        for process in (self.worker, self.second_worker):
            environment = {
                name: value for name, value in process.part.environment.items() if name not in names
            }
            environment |= {f"SECKILL_{name.upper()}": str(value) for name, value in settings.items()}
            process.part = replace(process.part, environment=environment)
        self._worker_settings = settings
        self.worker.stop()
        self.worker.start()

    def arm(self, victim: str, point: str, arrivals: int) -> None:
        """Start this process again, such that it ends itself at this fault point."""
        process, _ = self.pair(victim)
        armed = replace(
            process.part,
            environment={**process.part.environment, "SECKILL_FAULT_POINT": f"{point}:{arrivals}"},
        )
        plain, process.part = process.part, armed
        process.kill()
        process.start()
        process.part = plain

    def _agent(self, name: str, role: str, environment: dict[str, str]) -> Process:
        port = free_port()
        return self._process(
            name, ("agents", role), port, "/ready", {**environment, "SECKILL_TABLES_PORT": str(port)}
        )

    def _process(
        self, name: str, module: Iterable[str], port: int, path: str, environment: dict[str, str]
    ) -> Process:
        part = Part(
            name=name,
            address=f"http://127.0.0.1:{port}",
            command=(sys.executable, "-m", *module),
            is_ready=lambda: answers_ok("127.0.0.1", port, path),
            environment={**environment, "SECKILL_WORKER_NAME": name},
            start_timeout_s=START_TIMEOUT_S,
        )
        return Process(part, self._logs)

    def __enter__(self) -> "Stage":
        processes = (self.follower, self.worker, self.ingress)
        for process in processes:
            process.spawn()
        for process in processes:
            process.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        for process in (
            *(self.ingress, self.second_worker, self.worker, self.second_follower, self.follower),
        ):
            process.resume()
            process.stop()
