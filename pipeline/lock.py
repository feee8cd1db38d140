"""A lock for jobs of which only one may run in the whole system: a rebuild, a repair.

It is redis-py's lock, which expires unless its holder renews it, so a dead process does not keep it. An expiring lock
alone protects nothing: its holder may be paused until the lock has expired, then wake up and write although another
process holds the lock by now. Therefore:

- `HeldLock.check` raises LockLost as soon as this process knows, or must assume, that it no longer holds the lock.
  A job calls it before each write.
- Each holder gets a *fencing token*, higher than every earlier one. Each script that writes to Redis compares it with
  the newest one in the same call (`lock_fence` in pipeline/stock/lua/includes). So a holder that was paused after its
  `check` writes nothing either. A StockStore does both once its `lock` is set.

A decider has no lock. Its fence is the cursor (docs/protocol.md), which depends on no clock.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import orjson
from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.exceptions import LockNotOwnedError

from pipeline.errors import LockLost, OperatorError, RedisUnavailable
from pipeline.process.tasks import cancel_and_wait
from pipeline.settings import Settings
from pipeline.stock.client import connection_pool, reply_of
from pipeline.stock.keys import Keys
from pipeline.stock.scripts import script

LOCK_MS = 10_000
"""How long a lock outlives a holder that crashed."""
RENEWALS_PER_LOCK = 5
"""More than one, so that a lock survives renewals that fail."""
TOKEN_STEP_MAX = 1_000_000
"""A failover may lose the last token. Random steps keep the next holder from getting the same one."""
MARGIN_MS = 1_000
"""A holder stops writing this long before its lock can expire, because its last write needs time to arrive."""

logger = logging.getLogger(__name__)


class LockTaken(OperatorError):
    """Another process holds the lock; the message says which, since when, and when it expires."""


class HeldLock:
    """A lock that this process holds, or has lost. Get one from `held`."""

    def __init__(self, name: str, token_key: str, lock: "_TokenLock", valid_until_s: float) -> None:
        self.name = name
        self.token_key = token_key
        self.token = lock.fencing_token
        self._lock = lock
        self._valid_until_s = valid_until_s
        self._lost: str | None = None

    def check(self) -> None:
        """Raises LockLost unless this process certainly holds the lock. Call it before each write."""
        self._notice_expiry(time.monotonic())
        if self._lost is not None:
            raise LockLost(f"lost the lock {self.name}: {self._lost}")

    async def renew_until_lost(self) -> None:
        """Returns once the lock is lost. A lock that may have expired is not renewed."""
        while self._lost is None:
            await asyncio.sleep(LOCK_MS / RENEWALS_PER_LOCK / 1_000)
            self._notice_expiry(time.monotonic())
            if self._lost is None:
                await self._renew()

    async def _renew(self) -> None:
        sent_at_s = time.monotonic()
        try:
            is_ours = await reply_of(_if_owned(self._lock.extend(LOCK_MS / 1_000, replace_ttl=True)))
        except RedisUnavailable as error:
            logger.warning("the lock %s is not renewed: %s", self.name, error)
            return
        if is_ours:
            self._valid_until_s = _until_s(sent_at_s)
        else:
            self._lost = "it expired, or Redis lost it"

    def _notice_expiry(self, now_s: float) -> None:
        # Final, even if a renewal still succeeds: `check` may have raised already.
        if self._lost is None and now_s >= self._valid_until_s:
            self._lost = "it was not renewed in time"

    def on_renewal_ended(self, task: "asyncio.Task[None]") -> None:
        """Nothing renews the lock any more. Unless it was released or lost, that is a fault."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("renewing the lock %s failed", self.name, exc_info=error)
            self._lost = f"its renewal failed: {error}"


@asynccontextmanager
async def held(settings: Settings, name: str) -> AsyncIterator[HeldLock]:
    """Hold the lock `name` inside the block. Raises LockTaken or RedisUnavailable."""
    keys = Keys(settings.key_prefix)
    pool = connection_pool(settings.redis(), settings.redis_timeout_ms / 1_000, None)
    async with Redis.from_pool(pool) as redis:
        lock = _TokenLock(redis, keys.lock(name), keys.lock_token(name))
        began_s = time.monotonic()
        if not await reply_of(lock.acquire(blocking=False, token=_content())):
            raise LockTaken(
                f"the lock {name} is taken: {_holder(lock.found)}; if that process is dead, the lock is free within "
                f"{LOCK_MS // 1_000} s"
            )
        taken = HeldLock(name, keys.lock_token(name), lock, _until_s(began_s))
        renewal = asyncio.create_task(taken.renew_until_lost(), name=f"renewal of the lock {name}")
        renewal.add_done_callback(taken.on_renewal_ended)
        try:
            yield taken
        finally:
            await cancel_and_wait(renewal)
            await _release(lock, name)


class _TokenLock(Lock):
    """redis-py's lock, plus a fencing token that is issued when the lock is taken."""

    def __init__(self, redis: Redis, name: str, token_key: str) -> None:
        super().__init__(redis, name, timeout=LOCK_MS / 1_000, thread_local=False)
        self._token_key = token_key
        self._take = redis.register_script(script("lock"))
        self.fencing_token = ""
        self.found = b""
        """What the lock contains while another process holds it."""

    async def do_acquire(self, token: str | bytes) -> bool:
        now_us, step = time.time_ns() // 1_000, 1 + secrets.randbelow(TOKEN_STEP_MAX)
        taken, answer = await self._take(
            keys=[self.name, self._token_key], args=[token, LOCK_MS, now_us, step]
        )
        if not taken:
            self.found = answer
            return False
        self.fencing_token = answer.decode()
        return True


async def _release(lock: _TokenLock, name: str) -> None:
    """Release the lock unless another process holds it by now. If this fails, the lock expires."""
    try:
        if not await reply_of(_if_owned(lock.release())):
            logger.warning("the lock %s was lost before its release", name)
    except RedisUnavailable as error:
        logger.warning("the lock %s was not released; it expires within %d ms: %s", name, LOCK_MS, error)


async def _if_owned(call: Awaitable[object]) -> bool:
    """Make a call that fails unless we hold the lock; whether we did."""
    try:
        await call
    except LockNotOwnedError:
        return False
    return True


def _until_s(sent_at_s: float) -> float:
    """When a holder must stop writing. Redis counts from the arrival of the request, which is after `sent_at_s`."""
    return sent_at_s + (LOCK_MS - MARGIN_MS) / 1_000


def _content() -> bytes:
    """What the lock contains while we hold it: unique, and readable for people."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    who = f"process {os.getpid()} on {socket.gethostname()}"
    return orjson.dumps({"holder": who, "since": since, "id": uuid.uuid4().hex})


def _holder(content: bytes) -> str:
    try:
        found = orjson.loads(content)
        return f"{found['holder']} holds it since {found['since']}"
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "by an unknown holder"
