"""The calls: how many purchases a second the ingress takes, beside a bare server with as many processes."""

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from stage import Stage
from wrk import Answered, WrkFailed, wrk

from pipeline.local.listen import answers_ok, free_port
from pipeline.local.process import Part, Process
from pipeline.partitionlog import PartitionLog
from pipeline.stock.store import StockStore
from pipeline.topics import partition_of

SECONDS = 8
CONNECTIONS = (1, 64, 256)
INGRESSES = (1, 2)
STOCK = 1_000
DRAINED_WITHIN_S = 300.0
LOOK_INTERVAL_S = 0.1
EXPECTED = {"async": {202}, "sync": {200, 409}}


@dataclass(frozen=True, slots=True)
class Calls:
    """`mode` is async (the log has it), sync (it is decided) or hello (the floor)."""

    mode: str
    ingresses: int
    connections: int
    per_s: float
    p50_ms: float
    p99_ms: float


def measure(stage: Stage) -> Iterator[Calls]:
    """The floor and both purchase calls, for each number of processes and connections."""
    for count in INGRESSES:
        with _hello(stage, count) as url:
            for connections in CONNECTIONS:
                yield _calls("hello", count, connections, wrk(url, "0", "async", connections, SECONDS))
        with _system(stage, count) as (url, admin_url):
            for mode in ("async", "sync"):
                for connections in CONNECTIONS:
                    product_id = f"{mode}-{count}-{connections}"
                    _open(admin_url, product_id)
                    answered = wrk(url, product_id, mode, connections, SECONDS)
                    if unexpected := set(answered.statuses) - EXPECTED[mode]:
                        raise WrkFailed(f"{mode}: answers with status {unexpected}: {answered}")
                    asyncio.run(_drained(stage, product_id))
                    yield _calls(mode, count, connections, answered)


def _calls(mode: str, ingresses: int, connections: int, answered: Answered) -> Calls:
    return Calls(mode, ingresses, connections, answered.per_s, answered.p50_ms, answered.p99_ms)


@contextmanager
def _hello(stage: Stage, count: int) -> Iterator[str]:
    port = free_port()
    command = (sys.executable, str(Path(__file__).with_name("hello.py")), str(port))
    parts = [
        Part(f"hello-{number}", "", command, lambda: answers_ok("127.0.0.1", port, "/"))
        for number in range(count)
    ]
    with _all([Process(part, stage.directory / "logs") for part in parts]):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _system(stage: Stage, count: int) -> Iterator[tuple[str, str]]:
    port, admin_port = free_port(), free_port()
    ingresses = [stage.ingress(number, port, admin_port) for number in range(1, count + 1)]
    with _all([stage.worker(), stage.follower(), *ingresses]):
        yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"


@contextmanager
def _all(processes: Sequence[Process]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in processes:
            stack.enter_context(each)
        yield


def _open(admin_url: str, product_id: str) -> None:
    body = {
        "product_id": product_id,
        "product_name": "bench",
        "price": 9.90,
        "stock": STOCK,
        "start_time": "2026-01-01T00:00:00Z",
        "end_time": "2099-01-01T00:00:00Z",
        "status": "active",
    }
    request = urllib.request.Request(  # noqa: S310 -- a URL of our own
        f"{admin_url}/api/v1/seckill/activity/prewarm",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 -- a URL of our own
        assert answer.status == 200


async def _drained(stage: Stage, product_id: str) -> None:
    """Until all that was said yes to is decided: the next measurement is not to pay for this one."""
    partition = partition_of(product_id, stage.topics.requests.partitions)
    log = PartitionLog(stage.settings.kafka())
    store = StockStore(stage.settings.redis(), 10_000)
    deadline = time.monotonic() + DRAINED_WITHIN_S
    try:
        end = (await log.bounds(stage.topics.requests.name, partition)).end
        while await store.cursor_offset(partition) < end - 1:
            assert time.monotonic() < deadline, f"{product_id} was not decided within {DRAINED_WITHIN_S} s"
            await asyncio.sleep(LOOK_INTERVAL_S)
    finally:
        await store.close()
