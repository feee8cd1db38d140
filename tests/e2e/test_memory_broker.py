"""A complete sale without Java: on the in-memory broker, whatever broker the other tests use."""

import json
from pathlib import Path

from system import System, wait_until

from e2e.sale import opening

BUYERS = 60
STOCK = 10


def test_a_complete_sale_on_the_in_memory_broker(tmp_path: Path) -> None:
    with System(tmp_path / "data", broker="memory") as system:
        assert "in-memory broker: loses its data when it stops" in system.output
        assert system.admin("/api/v1/seckill/activity/prewarm", opening(1001, STOCK))[0] == 200

        accepted, at_once = [], []
        for number in range(BUYERS):
            body = {"product_id": 1001, "user_id": f"buyer-{number}"}
            status, answer = system.public("/api/v1/seckill/purchase/async", body)
            if status == 202:
                accepted.append(answer["request_id"])
            else:
                # Sold out is a final refusal, so it needs no record in the log.
                assert (status, answer["code"], answer["order_id"]) == (409, -2, None), answer
                at_once.append(number)
        assert len(set(accepted)) == BUYERS - len(at_once)
        assert all(number >= STOCK for number in at_once)

        decided = {}
        for request_id in accepted:
            status, answer = system.public(f"/api/v1/seckill/requests/{request_id}?wait_ms=20000")
            assert (status, answer["status"]) == (200, "decided"), answer
            decided[request_id] = answer
        winners = [request_id for request_id, answer in decided.items() if answer["code"] == 1]
        assert len(winners) == STOCK
        # First in the log, first served: these buyers came one after the other.
        assert winners == accepted[:STOCK]
        assert {answer["code"] for answer in decided.values()} <= {1, -2}
        assert [decided[request_id]["order_id"] for request_id in winners] == winners

        body = {"product_id": 1001, "user_id": "buyer-0"}
        status, answer = system.public("/api/v1/seckill/purchase", body)
        assert (status, answer["code"], answer["order_id"]) == (409, -3, winners[0])
        assert "request_id" not in answer

        status, stats = system.public("/api/v1/seckill/stats/1001")
        assert (status, stats["current_stock"], stats["user_count"]) == (200, 0, STOCK)
        assert stats["answered_without_log"] == len(at_once) + 1

        # Without transactions, orders are written at least once, and the follower's log says so.
        system.environment["SECKILL_KAFKA_IDEMPOTENCE"] = "false"
        wait_until(lambda: len(orders(system)) == STOCK, "the orders")
        assert orders(system) == winners
        assert "written at least once" in (system.data_dir / "logs" / "follower-1.log").read_text()
        audit = system.run("audit")
        assert audit.returncode == 0, audit.stdout


def orders(system: System) -> list[str]:
    lines = system.run("orders", "follow", "--to-end", "--json").stdout.splitlines()
    return [json.loads(line)["order_id"] for line in lines]
