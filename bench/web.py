"""The calls: what a purchase costs, in CPU time of every process involved, next to a bare server.

The bare server is measured right before each call: a second of CPU time achieves less while others use the machine,
and that changes from minute to minute.
"""

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from cpu import TOTAL, Meter, pid_of
from stage import Stage
from wrk import Answered, WrkFailed, wrk

from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.topics import partition_of
from pipeline.local.listen import answers_ok, free_port
from pipeline.local.process import Part, Process
from pipeline.stock.store import StockStore

CONNECTIONS = (1, 64, 256)
WARM_UP_S = 4
IDLE_S = 3
SETTLED_S = 0.3
"""From the last decision until all followers of the decision log have seen it."""
DRAINED_WITHIN_S = 300.0
POLL_INTERVAL_S = 0.1
ENOUGH = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Mode:
    """A call of `tests/load/seckill.lua`, the stock of its product, and the expected HTTP statuses."""

    name: str
    call: str
    statuses: frozenset[int]
    stock: int = ENOUGH
    is_paused: bool = False


HELLO_S = 2
HELLO_CONNECTIONS = 256
HELLO = Mode("hello", "async", frozenset({200}))
MODES = (
    Mode("async", "async", frozenset({202})),
    Mode("sync", "sync", frozenset({200})),
    # On a paused product, each purchase goes through the log and is decided against the buyer.
    Mode("async-refused", "async", frozenset({202}), is_paused=True),
    Mode("sync-refused", "sync", frozenset({404}), is_paused=True),
    Mode("sold-out", "sync", frozenset({409}), stock=1),
)


@dataclass(frozen=True, slots=True)
class Calls:
    """One mode with this many connections. `cpu_us` is CPU time per answer by role, with the sum as "total".

    `hellos` is that sum in units of the hello right before; `purchases_per_record` is None if no record was written.
    """

    mode: str
    ingresses: int
    connections: int
    per_s: float
    p50_ms: float
    p99_ms: float
    purchases_per_record: float | None
    cpu_us: dict[str, float]
    hellos: float = 1.0


@dataclass(frozen=True, slots=True)
class System:
    """Our running processes; `roles` are the ids of all processes whose CPU time counts."""

    stage: Stage
    url: str
    admin_url: str
    ingresses: int
    roles: Mapping[str, Sequence[int]]


class Bench:
    """A system and as many bare servers as it has ingresses, on one machine; whichever is not called is idle."""

    def __init__(self, system: System, hello_url: str, hellos: Sequence[Process], seconds: int) -> None:
        self._system = system
        self._hello_url = hello_url
        self._hellos = hellos
        self._seconds = seconds
        self._products = 0

    def warm_up(self, modes: Iterable[Mode]) -> None:
        for mode in modes:
            self._purchases(mode, max(CONNECTIONS), WARM_UP_S)

    def measure(self, mode: Mode, connections: int) -> tuple[Calls, Calls]:
        """Measures the bare server and, right after it, this mode."""
        hello = self._hello()
        calls = self._purchases(mode, connections, self._seconds)
        return hello, replace(calls, hellos=calls.cpu_us[TOTAL] / hello.cpu_us[TOTAL])

    def idle_ms_per_s(self) -> dict[str, float]:
        """CPU milliseconds per second of each role without any calls."""
        meter = Meter(self._system.roles)
        time.sleep(IDLE_S)
        return {role: spent * 1_000 / IDLE_S for role, spent in meter.spent_s().items()}

    def _hello(self) -> Calls:
        meter = Meter({HELLO.name: list(map(pid_of, self._hellos))})
        answered = wrk(self._hello_url, "0", HELLO.call, HELLO_CONNECTIONS, HELLO_S)
        return self._measured(HELLO, HELLO_CONNECTIONS, answered, meter, 0)

    def _purchases(self, mode: Mode, connections: int, seconds: int) -> Calls:
        self._products += 1
        product_id = f"{mode.name}-{connections}-{self._products}"
        self._open(mode, product_id)
        asyncio.run(drained(self._system.stage, product_id))
        before = asyncio.run(_log_end(self._system.stage, product_id))
        meter = Meter(self._system.roles)
        answered = wrk(self._system.url, product_id, mode.call, connections, seconds)
        asyncio.run(drained(self._system.stage, product_id))
        time.sleep(SETTLED_S)
        records = asyncio.run(_log_end(self._system.stage, product_id)) - before
        return self._measured(mode, connections, answered, meter, records)

    def _measured(
        self, mode: Mode, connections: int, answered: Answered, meter: Meter, records: int
    ) -> Calls:
        spent_s = meter.spent_s()
        if unexpected := set(answered.statuses) - mode.statuses:
            raise WrkFailed(f"{mode.name}: unexpected statuses {unexpected}: {answered}")
        return Calls(
            mode.name,
            self._system.ingresses,
            connections,
            answered.per_s,
            answered.p50_ms,
            answered.p99_ms,
            answered.count / records if records else None,
            {role: spent * 1e6 / answered.count for role, spent in spent_s.items()},
        )

    def _open(self, mode: Mode, product_id: str) -> None:
        open_product(self._system.admin_url, product_id, mode.stock, is_paused=mode.is_paused)
        if mode.stock == 1:
            _post(
                f"{self._system.url}/api/v1/seckill/purchase", {"product_id": product_id, "user_id": "first"}
            )


def medians(rounds: Sequence[Calls]) -> Calls:
    """The median of each figure on its own."""
    first = rounds[0]
    per_record = [each.purchases_per_record for each in rounds if each.purchases_per_record is not None]
    return Calls(
        first.mode,
        first.ingresses,
        first.connections,
        median(each.per_s for each in rounds),
        median(each.p50_ms for each in rounds),
        median(each.p99_ms for each in rounds),
        median(per_record) if per_record else None,
        {role: median(each.cpu_us[role] for each in rounds) for role in first.cpu_us},
        median(each.hellos for each in rounds),
    )


@contextmanager
def bench(stage: Stage, ingresses: int, seconds: int) -> Iterator[Bench]:
    # Closed-loop clients wait for their answers, so a rate that is just sustained is what they are to find.
    with system(stage, ingresses, shedding_enable=False) as ours, _hello(stage, ingresses) as (url, hellos):
        yield Bench(ours, url, hellos, seconds)


@contextmanager
def _hello(stage: Stage, count: int) -> Iterator[tuple[str, Sequence[Process]]]:
    port = free_port()
    command = (sys.executable, str(Path(__file__).with_name("hello.py")), str(port))
    parts = [
        Part(f"hello-{number}", "", command, lambda: answers_ok("127.0.0.1", port, "/"))
        for number in range(count)
    ]
    processes = [Process(part, stage.directory / "logs") for part in parts]
    with _all(processes):
        yield f"http://127.0.0.1:{port}", processes


@contextmanager
def system(stage: Stage, ingresses: int, **settings: object) -> Iterator[System]:
    """A worker, a follower and this many ingresses with these settings."""
    port, admin_port = free_port(), free_port()
    listeners = {"public_port": port, "admin_port": admin_port}
    ours = {
        "ingress": [stage.ingress(number, **listeners, **settings) for number in range(1, ingresses + 1)],
        "decider": [stage.worker()],
        "follower": [stage.follower()],
    }
    with _all([each for processes in ours.values() for each in processes]):
        roles = {role: list(map(pid_of, processes)) for role, processes in ours.items()} | stage.servers()
        yield System(stage, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}", ingresses, roles)


@contextmanager
def _all(processes: Sequence[Process]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in processes:
            stack.enter_context(each)
        yield


def open_product(
    admin_url: str, product_id: str, stock: int, *, is_paused: bool = False, per_user_limit: int = 1
) -> None:
    opening = {
        "product_id": product_id,
        "product_name": "bench",
        "price": 9.90,
        "stock": stock,
        "start_time": "2026-01-01T00:00:00Z",
        "end_time": "2099-01-01T00:00:00Z",
        "status": "paused" if is_paused else "active",
        "per_user_limit": per_user_limit,
    }
    _post(f"{admin_url}/api/v1/seckill/activity/prewarm", opening)


def _post(url: str, document: dict[str, object]) -> None:
    request = urllib.request.Request(  # noqa: S310 -- our own URL
        url, json.dumps(document).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 -- our own URL
        assert answer.status == 200


async def _log_end(stage: Stage, product_id: str) -> int:
    partition = partition_of(product_id, stage.topics.requests.partitions)
    return (await LogReader(stage.settings.kafka()).bounds(stage.topics.requests.name, partition)).end


async def drained(stage: Stage, product_id: str) -> None:
    """Waits until every accepted purchase is decided, so that the next measurement does not pay for this one."""
    partition = partition_of(product_id, stage.topics.requests.partitions)
    store = StockStore(stage.settings.redis(), 10_000)
    deadline = time.monotonic() + DRAINED_WITHIN_S
    try:
        end = await _log_end(stage, product_id)
        while await store.cursor_offset(partition) < end - 1:
            assert time.monotonic() < deadline, f"{product_id} was not decided within {DRAINED_WITHIN_S} s"
            await asyncio.sleep(POLL_INTERVAL_S)
    finally:
        await store.close()
