"""Follows the orders of a sale with plain aiokafka, until Ctrl-C: `python order_consumer.py [TOPIC]`."""

import asyncio
import contextlib
import json
import os
import sys

from aiokafka import AIOKafkaConsumer

TOPIC = sys.argv[1] if len(sys.argv) > 1 else "seckill.orders.v1"
BOOTSTRAP = os.environ.get("SECKILL_KAFKA_BOOTSTRAP") or "127.0.0.1:9092"


async def main() -> None:
    seen = set()  # a shop would use its database: insert the order id, on conflict do nothing
    async with AIOKafkaConsumer(
        TOPIC, bootstrap_servers=BOOTSTRAP, auto_offset_reset="earliest", isolation_level="read_committed"
    ) as consumer:
        async for record in consumer:
            order = json.loads(record.value)
            event = order["event"], order["order_id"]
            if event not in seen:
                seen.add(event)
                print(*event, order["user_id"], order["quantity"], order["amount"], flush=True)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
