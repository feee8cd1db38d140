import resource
import time

import pytest

from audit.faults import PARTITION, PLAIN
from pipeline.decider.intake import prepare
from pipeline.decider.synchronise import incoming
from pipeline.domain.product import Opening
from pipeline.messages import *
from pipeline.rebuild import rebuild


@pytest.mark.parametrize("stock", [4000, 300_000, 1_000_000])
async def test_bench(empty_sale, stock):
    s = empty_sale
    key = PLAIN.encode()
    cmds = [(key, encode_open(OpenCommand(PLAIN, Opening("n", "9.90", stock, 0, 10**14))))]
    cmds += [(key, encode_purchases(PLAIN, [f"u{n:05d}{i:04d}" for i in range(200)])) for n in range(5000)]
    await s.send(cmds)
    reqs = [r async for b in s.log.read(s.topics.requests.name, PARTITION, 0) for r in b]
    at = -1
    results = []
    orders = []
    for i in range(0, len(reqs), 10):
        chunk = [prepare(incoming(r)).command for r in reqs[i : i + 10]]
        d = await s.store.decide(PARTITION, at, 0, chunk)
        at = chunk[-1].offset
        results += [(key, r) for r in d.records]
        for r, w in zip(d.records, d.winners):
            if w:
                orders += [(key, o) for o in created_orders(decode_result(r), PARTITION)]
    await s.producer.send_all(s.topics.orders.name, PARTITION, orders)
    await s.producer.send_all(s.topics.results.name, PARTITION, results)
    del cmds, reqs, results, orders
    for _ in range(2):
        c = time.process_time()
        i0 = s.redis.info("cpu")
        s.redis.flushall(asynchronous=False)
        print("\nREBUILD", stock, await rebuild(s.settings, s.topics), "own cpu", time.process_time() - c)
        i1 = s.redis.info("cpu")
        print(
            "REDIS CPU", i1["used_cpu_user"] + i1["used_cpu_sys"] - i0["used_cpu_user"] - i0["used_cpu_sys"]
        )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    c = time.process_time()
