"""Error replies of Redis: a temporary one is RedisUnavailable, any other a RedisFault."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from redis import Redis, exceptions
from redis.asyncio import Redis as AsyncRedis
from servers import RedisServer

from pipeline.domain.product import Opening
from pipeline.errors import RedisUnavailable
from pipeline.messages.commands import OpenCommand, encode_open
from pipeline.stock.client import RedisFault
from pipeline.stock.store import StockStore
from pipeline.stock.values import PreparedCommand

PARTITION = 1
OPENING = PreparedCommand(0, 1_000, "1", encode_open(OpenCommand("1", Opening("n", "1", 5, 0, 10**13))))
SAVE_POLL_S = 0.01


@pytest.fixture
async def store(private_redis: RedisServer) -> AsyncIterator[StockStore]:
    store = StockStore(private_redis.url, 5_000)
    yield store
    await store.close()


async def _refused_then_decided(store: StockStore, code: str, mend: Any) -> None:
    with pytest.raises(RedisUnavailable, match=code):
        await store.decide(PARTITION, -1, 0, [OPENING])
    with pytest.raises(RedisUnavailable, match=code):
        await store.wipe(PARTITION, -1)
    mend()
    assert len(await store.decide(PARTITION, -1, 0, [OPENING])) == 1


async def test_a_redis_without_its_replicas_counts_as_unavailable(
    store: StockStore, private_redis: RedisServer
) -> None:
    with Redis.from_url(private_redis.url) as client:
        client.config_set("min-replicas-to-write", 1)
        await _refused_then_decided(
            store, "NOREPLICAS", lambda: client.config_set("min-replicas-to-write", 0)
        )


async def test_a_redis_that_cannot_save_counts_as_unavailable(
    store: StockStore, private_redis: RedisServer, tmp_path: Path
) -> None:
    with Redis.from_url(private_redis.url) as client:
        client.config_set("save", "3600 1")
        shutil.rmtree(tmp_path / "redis")
        client.bgsave()
        while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
            await asyncio.sleep(SAVE_POLL_S)
        await _refused_then_decided(
            store, "MISCONF", lambda: client.config_set("stop-writes-on-bgsave-error", "no")
        )


async def test_a_key_of_another_type_is_a_fault(store: StockStore, private_redis: RedisServer) -> None:
    with Redis.from_url(private_redis.url) as client:
        client.set("seckill:{p1}:cursor", "x")
    with pytest.raises(RedisFault, match="WRONGTYPE"):
        await store.decide(PARTITION, -1, 0, [OPENING])
    with pytest.raises(RedisFault, match="WRONGTYPE"):
        await store.cursor(PARTITION)


class FailingClient:
    """A client that gets this answer to a ping."""

    def __init__(self, error: str) -> None:
        self._error = error

    def register_script(self, source: str) -> str:
        return source

    async def ping(self) -> None:
        raise exceptions.ResponseError(self._error)


def store_with_error(error: str) -> StockStore:
    return StockStore("", 1_000, client=cast("AsyncRedis", FailingClient(error)))


@pytest.mark.parametrize(
    "error",
    [
        "MISCONF Redis is configured to save RDB snapshots, but",
        "NOREPLICAS Not enough good replicas to write.",
        "BUSY Redis is busy running a script.",
        "READONLY You can't write against a read only replica. script: 1f, on @user_script:168.",
        "Command # 1 (HSET a b 1) of pipeline caused error: MISCONF Errors writing to the AOF file",
        "EXECABORT Transaction discarded because of: NOREPLICAS Not enough good replicas to write.",
        "ERR Error running script (call to f_1f): @user_script:168: @user_script: 168: -MISCONF Redis is",
        "ERR Error running script (call to f_1f): @user_script:9: -OOM command not allowed",
    ],
)
async def test_a_temporary_error_is_recognised_wherever_its_code_appears(error: str) -> None:
    with pytest.raises(RedisUnavailable):
        await store_with_error(error).ping()


@pytest.mark.parametrize(
    "error",
    [
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "ERR user_script:12: attempt to index field 'BUSY' (a nil value) script: 1f, on @user_script:12.",
        "BUSYGROUP Consumer Group name already exists",
        "NOPERM this user has no permissions to run the 'evalsha' command",
    ],
)
async def test_a_permanent_error_is_a_fault(error: str) -> None:
    with pytest.raises(RedisFault):
        await store_with_error(error).ping()
