"""`python -m pipeline.ingress` answers all waiting clients when it is stopped, and reports why it cannot start."""

import asyncio
import os
import signal
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import aiohttp
import pytest
from programs import running

from contract.serving import PURCHASE, PURCHASE_ASYNC, REQUESTS
from pipeline.kafka.topic_admin import create_topics
from pipeline.kafka.topics import load_topics
from pipeline.local.listen import free_port
from pipeline.local.recipe import INGRESS_COMMAND, environment
from pipeline.settings import Profile

READY_S_MAX = 30
STOP_S_MAX = 10


def ingress(
    open_files_max: int = 0, **settings: Any
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """Runs the process inside the block; `open_files_max` is its hard limit, 0 to inherit that of the tests."""
    shell = ("sh", "-c", f'ulimit -n {open_files_max}; exec "$@"', "sh") if open_files_max else ()
    return running(
        *(*shell, *INGRESS_COMMAND),
        env={**os.environ, **environment(settings)},
        stderr=asyncio.subprocess.PIPE,
    )


async def _until_ready(client: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(READY_S_MAX):
        while True:
            try:
                async with client.get("/health/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.05)


async def _stop(process: asyncio.subprocess.Process) -> tuple[int, str]:
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(STOP_S_MAX):
        _, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, error.decode()


async def test_stopping_answers_all_waiters(kafka: Any, redis_url: str) -> None:
    await create_topics(kafka.bootstrap, load_topics(Profile.LOCAL))
    port = free_port()
    settings: dict[str, Any] = {
        "redis_url": redis_url,
        "public_port": port,
        "admin_port": free_port(),
        "wait_timeout_ms": 30_000,
    }
    async with (
        ingress(**kafka.settings(), **settings) as process,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        await _until_ready(client)
        async with client.post(PURCHASE_ASYNC, json={"product_id": 5, "user_id": "u1"}) as response:
            request_id = (await response.json())["request_id"]
        # There is no decider: each of these would wait for half a minute.
        buyer = asyncio.create_task(client.post(PURCHASE, json={"product_id": 5, "user_id": "u2"}))
        poller = asyncio.create_task(client.get(f"{REQUESTS}{request_id}?wait_ms=30000"))
        stream = await client.get(f"{REQUESTS}{request_id}/events")
        await stream.content.readline()
        await asyncio.wait({buyer, poller}, timeout=0.5)
        assert not buyer.done()
        status, log = await _stop(process)
        assert (status, "Traceback" in log) == (0, False), log
        async with await buyer as response:
            assert (response.status, (await response.json())["code"]) == (202, -10)
        async with await poller as response:
            assert (response.status, (await response.json())["status"]) == (200, "queued")
        assert b"queued" in await stream.read()


async def test_an_ingress_that_waits_for_kafka_can_be_stopped() -> None:
    async with ingress(kafka_bootstrap=f"127.0.0.1:{free_port()}") as process:
        # It handles signals only from its first attempt to connect.
        assert process.stderr is not None
        async with asyncio.timeout(READY_S_MAX):
            while b"connect" not in await process.stderr.readline():
                pass
        status, log = await _stop(process)
        assert (status, "Traceback" in log) == (0, False), log


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"public_port": 0}, "SECKILL_PUBLIC_PORT"),
        ({"topics_file": "/nowhere/topics.yaml"}, "/nowhere/topics.yaml"),
    ],
)
async def test_a_wrong_setting_is_reported_without_a_traceback(settings: dict[str, Any], words: str) -> None:
    async with ingress(**settings) as process:
        async with asyncio.timeout(READY_S_MAX):
            _, error = await process.communicate()
    assert process.returncode == 2
    assert words in error.decode()
    assert "Traceback" not in error.decode()


async def test_a_limit_on_open_files_below_the_settings_is_reported() -> None:
    async with ingress(open_files_max=1_000, connections_max=2_000) as process:
        async with asyncio.timeout(READY_S_MAX):
            _, error = await process.communicate()
    assert process.returncode == 2
    assert "SECKILL_CONNECTIONS_MAX" in error.decode()
    assert "1000" in error.decode()
    assert "Traceback" not in error.decode()


async def test_processes_that_share_their_listeners_have_a_health_port_each(
    kafka: Any, redis_url: str
) -> None:
    await create_topics(kafka.bootstrap, load_topics(Profile.LOCAL))
    shared: dict[str, Any] = {"redis_url": redis_url, "public_port": free_port(), "admin_port": free_port()}
    ports = [free_port(), free_port()]
    async with AsyncExitStack() as stack:
        for port in ports:
            await stack.enter_async_context(ingress(**kafka.settings(), **shared, health_port=port))
            client = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{port}"))
            await _until_ready(client)
        async with ingress(**kafka.settings(), **shared, health_port=ports[0]) as third:
            async with asyncio.timeout(READY_S_MAX):
                _, error = await third.communicate()
        assert (third.returncode, f"{ports[0]}" in error.decode()) == (2, True), (
            "a health port is never shared"
        )


@pytest.mark.parametrize("setting", ["public_port", "health_port"])
async def test_a_port_in_use_is_reported(kafka: Any, redis_url: str, setting: str) -> None:
    await create_topics(kafka.bootstrap, load_topics(Profile.LOCAL))
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = {"redis_url": redis_url, "public_port": free_port(), "admin_port": free_port(), setting: port}
    async with server, ingress(**kafka.settings(), **settings) as process:
        async with asyncio.timeout(READY_S_MAX):
            _, error = await process.communicate()
    assert process.returncode == 2
    assert f"{port}" in error.decode()
    assert "Traceback" not in error.decode()
