"""The whole system under the runner's control: our own processes with a given broker and Redis."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.audit.report import Check
from pipeline.demo.connection import Listener
from pipeline.local.listen import free_port
from pipeline.local.process import Part, Process
from pipeline.local.recipe import environment, follower_part, ingress_part, worker_part
from pipeline.settings import Settings

START_TIMEOUT_S = 90.0
LIMITS: Mapping[str, Any] = {
    "process_limit_requests_per_second": 150,
    "process_limit_burst": 50,
    "user_limit_requests_per_second": 2,
    "address_limit_requests_per_second": 100_000,
    "queue_size": 300,
    "max_concurrent_requests": 5,
    "degradation_enable": True,
}
"""Limits that the crowd runs into, above all during a fault."""


class Stage:
    """A context manager that runs the system. `kafka` and `redis` have kill(), start(), pause(), resume().

    `settings` are for all processes, in addition to their own.
    """

    def __init__(self, directory: Path, kafka: Any, redis: Any, settings: Mapping[str, Any]) -> None:
        self.kafka, self.redis = kafka, redis
        self.has_limits = bool(settings)
        self.public, self.admin = Listener("127.0.0.1", free_port()), Listener("127.0.0.1", free_port())
        self.settings = Settings(
            **kafka.settings(),
            data_dir=directory,
            redis_url=redis.url,
            public_port=self.public.port,
            admin_port=self.admin.port,
            # Without a pause, a stock that sells at once would be a single transaction.
            orders_pace_ms=20,
            **settings,
        )
        self.ingress = self._process(ingress_part, "ingress-1", health_port=free_port())
        self.follower = self._process(follower_part, "follower-1", tables_port=free_port())
        self.second_follower = self._process(follower_part, "follower-2", tables_port=free_port())
        self.worker = self._process(worker_part, "worker-1", tables_port=free_port())
        self.second_worker = self._process(worker_part, "worker-2", tables_port=free_port())
        self._plain_workers = [(worker, worker.part) for worker in (self.worker, self.second_worker)]
        self._worker_settings: Mapping[str, object] = {}
        self.foreign: Counter[tuple[Check, int]] = Counter()
        """By check and partition: the number of foreign records that a fault wrote and the audit must report."""

    def pair(self, victim: str) -> tuple[Process, Process]:
        """The "worker" or the "follower", and the process that can take over from it."""
        if victim == "worker":
            return self.worker, self.second_worker
        return self.follower, self.second_follower

    def configure_workers(self, settings: Mapping[str, object]) -> None:
        """Replace the workers' additional settings with these; restarts the running worker if they change."""
        if settings == self._worker_settings:
            return
        for process, plain in self._plain_workers:
            process.part = replace(plain, environment={**plain.environment, **environment(settings)})
        self._worker_settings = settings
        self.worker.stop()
        self.worker.start()

    def arm(self, victim: str, point: str, arrivals: int) -> None:
        """Restart this process such that it kills itself at this fault point, on the given arrival there."""
        process, _ = self.pair(victim)
        armed = replace(
            process.part,
            environment={**process.part.environment, "SECKILL_FAULT_POINT": f"{point}:{arrivals}"},
        )
        plain, process.part = process.part, armed
        process.kill()
        process.start()
        process.part = plain

    def _process(self, part: Callable[[Settings], Part], name: str, **settings: object) -> Process:
        own = self.settings.model_copy(update={"worker_name": name, **settings})
        return Process(replace(part(own), start_timeout_s=START_TIMEOUT_S), own.data_dir / "logs")

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
