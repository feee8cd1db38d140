"""The lock of jobs that run once: two holders, a holder that was paused, and a Redis that was restarted or emptied."""

import asyncio
import os
import signal
import sys
import time
from typing import Any

import pytest
from eventually import eventually
from programs import running
from redis import Redis
from redis.exceptions import NoPermissionError
from servers import RedisServer

from pipeline import lock as lock_module
from pipeline.errors import LockLost
from pipeline.lock import LockTaken, held
from pipeline.settings import Settings
from pipeline.stock.store import StockStore

KEY, TOKEN_KEY = "seckill:lock:sweep", "seckill:lock:sweep:token"
OWNER = "seckill:{p1}:log"
"""What the jobs of these tests write: the log that partition 1 belongs to."""

JOB = """
import asyncio, sys
from pipeline.lock import HeldLock, held
from pipeline.settings import Settings
from pipeline.stock.store import StockStore

async def main():
    settings = Settings()
    store = StockStore.of(settings)
    store.log_identity = "the paused job"
    async with held(settings, "sweep") as store.lock:
        print("held", flush=True)
        # The job is paused here, at its next line: `check` may have passed already.
        if sys.argv[1] == "after the check":
            HeldLock.check = lambda self: None
        sys.stdin.readline()
        try:
            await store.take_over(1)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        else:
            print("written", flush=True)

asyncio.run(main())
"""


@pytest.fixture
def settings(redis_url: str) -> Settings:
    return Settings(redis_url=redis_url)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks that expire soon."""
    monkeypatch.setattr(lock_module, "LOCK_MS", 500)
    monkeypatch.setattr(lock_module, "MARGIN_MS", 100)


def is_lost(lock: Any) -> bool:
    try:
        lock.check()
    except LockLost:
        return True
    return False


async def test_one_holder_at_a_time_and_the_other_learns_who(settings: Settings) -> None:
    async with held(settings, "sweep") as first:
        with pytest.raises(
            LockTaken,
            match=rf"sweep is taken: process {os.getpid()} on \S+ holds it since 20.*, the lock is free within 10 s",
        ):
            async with held(settings, "sweep"):
                pytest.fail("there are two holders")
        async with held(settings, "another"):
            first.check()
    async with held(settings, "sweep") as second:
        second.check()
    assert int(second.token) > int(first.token)


async def test_a_lock_is_free_again_after_its_holder_failed(settings: Settings, redis_url: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with held(settings, "sweep"):
            raise ZeroDivisionError
    with Redis.from_url(redis_url) as client:
        assert client.get(KEY) is None
        assert client.ttl(TOKEN_KEY) == -1, "the token outlives the lock"


async def test_the_token_grows_even_if_redis_loses_it(settings: Settings, redis_url: str) -> None:
    tokens = []
    with Redis.from_url(redis_url) as client:
        for _ in range(3):
            async with held(settings, "sweep") as lock:
                tokens.append(int(lock.token))
            client.flushall()
        # A holder's clock that is behind does not matter while Redis has the last token.
        client.set(TOKEN_KEY, tokens[-1] + 10**12)
        async with held(settings, "sweep") as lock:
            assert tokens[-1] + 10**12 < int(lock.token) <= tokens[-1] + 10**12 + lock_module.TOKEN_STEP_MAX
    assert tokens == sorted(set(tokens))


async def test_a_held_lock_is_renewed(settings: Settings, redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        async with held(settings, "sweep") as lock:
            left_ms: list[Any] = [client.pttl(KEY)]
            at_first_s = lock._valid_until_s

            def is_longer() -> bool:
                left_ms.append(client.pttl(KEY))
                return bool(left_ms[-1] > left_ms[-2] > 0)

            await eventually(is_longer, "the lock lasts longer")
            await eventually(lambda: lock._valid_until_s > at_first_s, "its holder knows")
            lock.check()


@pytest.mark.parametrize("moment", ["before the check", "after the check"])
async def test_a_paused_holder_writes_nothing_after_another_took_over(
    settings: Settings, redis_url: str, moment: str
) -> None:
    store = StockStore.of(settings)
    store.log_identity = "the next job"
    environment = {**os.environ, "SECKILL_REDIS_URL": redis_url}
    with Redis.from_url(redis_url) as client:
        async with running(
            *(sys.executable, "-c", JOB, moment),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        ) as job:
            assert job.stdout is not None
            assert job.stdin is not None
            assert await job.stdout.readline() == b"held\n"
            job.send_signal(signal.SIGSTOP)
            await eventually(lambda: client.get(KEY) is None, "the lock expires")
            async with held(settings, "sweep") as store.lock:
                await store.take_over(1)
                content = client.get(KEY)
                job.send_signal(signal.SIGCONT)
                job.stdin.write(b"\n")
                answer = (await job.stdout.readline()).decode()
                await job.wait()
                assert client.get(KEY) == content, "it released a lock that it did not hold"
        assert answer.startswith("LockLost"), answer
        assert ("not renewed in time" in answer) is (moment == "before the check")
        assert client.get(OWNER) == b"the next job"
    await store.close()


@pytest.mark.usefixtures("short")
async def test_a_holder_that_cannot_renew_stops_before_its_lock_expires(
    settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_: object) -> None:
        pass

    monkeypatch.setattr(lock_module.HeldLock, "_renew", nothing)
    async with held(settings, "sweep") as lock:
        await eventually(lambda: is_lost(lock), "the lock is lost")
        with pytest.raises(LockLost, match="sweep: it was not renewed in time"):
            lock.check()


@pytest.mark.usefixtures("short")
async def test_a_renewal_that_fails_is_seen(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object) -> None:
        raise NoPermissionError("this user has no permissions to run the 'pexpire' command")

    async with held(settings, "sweep") as lock:
        monkeypatch.setattr(lock._lock, "do_extend", refused)
        await eventually(lambda: is_lost(lock), "the lock is lost")
        with pytest.raises(LockLost, match="no permissions to run the 'pexpire' command"):
            lock.check()


async def test_a_restarted_redis_keeps_the_lock(private_redis: RedisServer) -> None:
    settings = Settings(redis_url=private_redis.url)
    store = StockStore.of(settings)
    store.log_identity = "log"
    async with held(settings, "sweep") as store.lock:
        await asyncio.to_thread(private_redis.process.stop)
        await asyncio.to_thread(private_redis.process.start)
        await store.take_over(1)
        with pytest.raises(LockTaken):
            async with held(settings, "sweep"):
                pytest.fail("there are two holders")
    await store.close()


async def test_a_redis_that_lost_its_data_has_no_holder(settings: Settings, redis_url: str) -> None:
    store = StockStore.of(settings)
    store.log_identity = "log"
    with Redis.from_url(redis_url) as client:
        async with held(settings, "sweep") as lock:
            store.lock = lock
            client.flushall()
            # Before the next renewal notices: the token is gone, too.
            with pytest.raises(LockLost, match="another token"):
                await store.take_over(1)
            await eventually(lambda: is_lost(lock), "the lock is lost")
            with pytest.raises(LockLost, match="expired, or Redis lost it"):
                lock.check()
        assert client.get(OWNER) is None
    await store.close()


async def test_a_failover_that_loses_the_latest_writes_leaves_one_writer(
    settings: Settings, redis_url: str
) -> None:
    """The replica has neither the lock nor its token, but an earlier one, of a host whose clock was ahead."""
    ahead = time.time_ns() // 1_000 + 10**12
    former, store = StockStore.of(settings), StockStore.of(settings)
    former.log_identity, store.log_identity = "the former job", "the next job"
    with Redis.from_url(redis_url) as client:
        client.set(TOKEN_KEY, ahead)
        async with held(settings, "sweep") as former.lock:
            client.delete(KEY)
            client.set(TOKEN_KEY, ahead)
            with pytest.raises(LockLost, match="another token"):
                await former.take_over(1)
            async with held(settings, "sweep") as store.lock:
                await store.take_over(1)
                with pytest.raises(LockLost):
                    await former.take_over(1)
                await store.take_over(1)
        assert client.get(OWNER) == b"the next job"
    await former.close()
    await store.close()


async def test_a_release_by_a_former_holder_does_nothing(
    settings: Settings, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Redis.from_url(redis_url) as client:
        async with held(settings, "sweep"):
            client.set(KEY, "another's")
        assert client.get(KEY) == b"another's"
        assert "sweep was lost before its release" in caplog.text
        with pytest.raises(LockTaken, match="by an unknown holder"):
            async with held(settings, "sweep"):
                pytest.fail("there are two holders")
