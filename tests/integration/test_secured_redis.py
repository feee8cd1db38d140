"""Redis with ACL users, and with TLS: the rights of docs/security.md suffice, and who is refused learns why."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from secured import Certificates, SecuredRedis, documented_redis_users, password, redis_settings

from pipeline.audit.reader import StockReader
from pipeline.domain.product import Opening
from pipeline.errors import RedisUnavailable
from pipeline.lock import held
from pipeline.messages.commands import OpenCommand, encode_open
from pipeline.settings import Settings
from pipeline.stock.client import PackedSslConnection, RedisFault, RedisRefused, require_access
from pipeline.stock.scripts import script
from pipeline.stock.store import StockStore
from pipeline.stock.values import PreparedCommand, StoredProduct


def test_the_scripts_use_no_command_that_a_user_of_theirs_may_not_use() -> None:
    rights = {line.split()[1]: set(line.split()) for line in documented_redis_users()}
    for user, scripts in {
        "ingress": ["snapshot"],
        "decider": ["decide", "replay", "wipe", "snapshot"],
        "rebuilder": ["replay", "wipe", "take_over", "lock"],
        "repairer": ["repair", "lock"],
    }.items():
        for each in scripts:
            used = {f"+{name.lower()}" for name in re.findall(r"redis\.call\('(\w+)'", script(each))}
            assert used
            assert used <= rights[user], f"{user} runs {each}"


def store_of(redis: SecuredRedis, certificates: Certificates, user: str) -> StockStore:
    return StockStore.of(Settings(**redis_settings(redis, certificates, user)))


@asynccontextmanager
async def closing(store: StockStore) -> AsyncIterator[StockStore]:
    yield store
    await store.close()


async def test_each_user_can_do_its_work_and_the_ingress_cannot_write(
    plain_redis: SecuredRedis, certificates: Certificates
) -> None:
    opening = PreparedCommand(0, 1_000, "1", encode_open(OpenCommand("1", Opening("n", "1", 5, 0, 10**13))))
    async with AsyncExitStack() as stack:
        decider, ingress, rebuilder = [
            await stack.enter_async_context(closing(store_of(plain_redis, certificates, user)))
            for user in ("decider", "ingress", "rebuilder")
        ]
        await decider.require_noeviction()
        decider.log_identity = "log"
        await decider.claim(1)
        (decision,) = await decider.decide(1, -1, 0, [opening])
        with pytest.raises(RedisFault, match="permission"):
            await ingress.wipe(1, 0)
        with pytest.raises(RedisFault, match="permission"):
            await ingress.take_over(1)
        ingress.log_identity = "log"
        assert (await ingress.snapshot(1, "1", ["u"])).terms is not None
        assert await ingress.progress(1) == (0, 0)
        assert await ingress.products(1) == await ingress.products(1, 5) == ["1"]
        assert await ingress.product(1, "1") is not None
        assert await ingress.buyer_count(1, "1") == 0
        settings = Settings(**redis_settings(plain_redis, certificates, "rebuilder"))
        async with held(settings, "rebuild") as lock:
            rebuilder.lock = lock
            await lock._renew()
            await rebuilder.wipe(1, 0)
            rebuilder.log_identity = "log"
            await rebuilder.take_over(1)
            await rebuilder.replay(1, -1, 1, [("1", decision)])
            lock.check()


async def test_a_repair_has_the_rights_that_it_needs(
    plain_redis: SecuredRedis, certificates: Certificates
) -> None:
    opening = PreparedCommand(0, 1_000, "1", encode_open(OpenCommand("1", Opening("n", "1", 5, 0, 10**13))))
    settings = Settings(**redis_settings(plain_redis, certificates, "repairer"))
    reader = StockReader(settings.redis(), settings.redis_timeout_ms)
    async with AsyncExitStack() as stack:
        decider, repairer = [
            await stack.enter_async_context(closing(store_of(plain_redis, certificates, user)))
            for user in ("decider", "repairer")
        ]
        await decider.decide(2, -1, 0, [opening])
        repairer.lock = await stack.enter_async_context(held(settings, "repair"))
        assert await repairer.progress(2) == (0, 0)
        stored = StoredProduct({"stock": "7"}, None)
        await repairer.repair(2, 0, "1", stored, {"a": b"0:0", "b": None})
        found = await reader.product(2, "1")
        assert (found.offset, found.fields, found.buyer_count) == (0, stored.fields, 1)
        assert [part async for part in reader.all_buyers(2, "1")] == [{"a": b"0:0"}]
        assert await reader.cursor_offset(2) == 0
        await reader.close()


async def test_redis_by_tls_needs_its_authority_and_packs_in_c(
    tls_redis: SecuredRedis, certificates: Certificates
) -> None:
    given = redis_settings(tls_redis, certificates, "decider")
    await require_access(Settings(**given).redis(), 5_000)
    with pytest.raises(RedisRefused, match=r"SECKILL_REDIS_CA_FILE.*not trusted"):
        await require_access(Settings(**{**given, "redis_ca_file": certificates.other_ca}).redis(), 5_000)
    elsewhere = Settings(**{**given, "redis_url": given["redis_url"].replace("127.0.0.1", "localhost")})
    with pytest.raises(RedisRefused, match=r"SECKILL_REDIS_CA_FILE.*not trusted.*[Hh]ostname mismatch"):
        await require_access(elsewhere.redis(), 5_000)
    without = Settings(**{**given, "redis_certificate_file": None})
    with pytest.raises(RedisRefused, match="SECKILL_REDIS_URL, SECKILL_REDIS_CERTIFICATE_FILE"):
        await require_access(without.redis(), 5_000)
    store = StockStore.of(Settings(**given))
    assert store._redis.connection_pool.connection_class is PackedSslConnection
    await store.ping()
    await store.close()


async def test_a_password_that_changes_later_counts_as_unavailable(
    plain_redis: SecuredRedis, certificates: Certificates
) -> None:
    """The process is not ready meanwhile, and continues once user and password match again."""
    store = store_of(plain_redis, certificates, "auditor")
    with plain_redis.admin(certificates) as client:
        await store.ping()
        client.acl_setuser("auditor", reset_passwords=True, passwords=["+other"], enabled=True)
        client.client_kill_filter(user="auditor")
        with pytest.raises(RedisUnavailable, match="closed"):
            await store.ping()
        with pytest.raises(RedisUnavailable, match="invalid username-password pair"):
            await store.ping()
        client.acl_setuser("auditor", passwords=[f"+{password('auditor')}"], enabled=True)
        await store.ping()
    await store.close()
