"""The administration calls for live settings, and what they change in a running ingress."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from contract.serving import REQUESTS, Reply, Service, StartIngress
from pipeline.control.follower import CONTROL_PARTITION
from pipeline.ingress.app import StartFailed
from pipeline.kafka.connection import client_options
from pipeline.kafka.log_reader import LogReader
from pipeline.kafka.producer import LogProducer
from pipeline.messages.settings import SettingChange, decode_setting, encode_setting
from pipeline.settings import LIVE_SETTINGS

CONTROL = "/api/v1/control"
ONE = CONTROL + "/{name}"


async def call(service: Service, method: str, name: str, **request: Any) -> Reply:
    return await service.call(method, f"{CONTROL}/{name}", admin=True, template=ONE, **request)


async def set_to(service: Service, name: str, value: object, **more: Any) -> Reply:
    return await call(service, "PUT", name, json={"value": value, "reason": "a crowd", **more})


async def change(service: Service, name: str, value: object) -> None:
    """Set it, and wait until it is in force."""
    reply = await set_to(service, name, value)
    assert reply.status == 200, reply.text
    await until_version(service, reply.json()["offset"])


async def until_version(service: Service, offset: int) -> None:
    async with asyncio.timeout(20):
        while (await service.call("GET", "/health/ready")).json()["control"]["version"] < offset:
            await asyncio.sleep(0.02)


async def changes_in_log(service: Service) -> list[int]:
    """The offsets of the changes of settings in the control topic; the ingress also writes its stage of degradation."""
    log = LogReader(service.settings.kafka(), ends_are_exact=service.settings.kafka_idempotence)
    return [
        record.offset
        async for batch in log.read(service.topics.control.name, CONTROL_PARTITION, 0)
        for record in batch
        if decode_setting(record.key, record.value) is not None
    ]


@pytest.fixture
async def writer(service: Service) -> AsyncIterator[LogProducer]:
    producer = LogProducer(service.settings, "test", idempotent=service.settings.kafka_idempotence)
    await producer.start()
    yield producer
    await producer.stop()


async def test_a_setting_is_set_shown_and_unset(start_ingress: StartIngress) -> None:
    service = await start_ingress(retry_after_s=4)
    fresh = (await call(service, "GET", "retry_after_s")).json()
    assert fresh == {
        "name": "retry_after_s",
        "value": 4,
        "base": 4,
        "source": "file",
        "change": None,
        "version": -1,
    }
    done = await set_to(service, "retry_after_s", 9, by="ann")
    offset = done.json()["offset"]
    assert (done.status, done.json()) == (
        200,
        {"name": "retry_after_s", "value": 9, "before": 4, "offset": offset},
    )
    await until_version(service, offset)
    found = (await call(service, "GET", "retry_after_s")).json()
    assert found.pop("change").items() >= {"by": "ann", "reason": "a crowd", "offset": offset}.items()
    assert found == {
        "name": "retry_after_s",
        "value": 9,
        "base": 4,
        "source": "control",
        "version": offset,
    }

    undone = await call(service, "DELETE", "retry_after_s", params={"reason": "it is over"})
    offset = undone.json()["offset"]
    assert (undone.status, undone.json()) == (
        200,
        {"name": "retry_after_s", "value": 4, "before": 9, "offset": offset},
    )
    await until_version(service, offset)
    everything = (await service.call("GET", CONTROL, admin=True)).json()
    assert everything["version"] == offset
    assert [each["name"] for each in everything["settings"]] == sorted(LIVE_SETTINGS)
    (found,) = (each for each in everything["settings"] if each["name"] == "retry_after_s")
    assert (found["value"], found["source"], found["change"]["reason"]) == (4, "file", "it is over")
    assert found["change"]["by"] == "an administrator"


@pytest.mark.parametrize(
    ("name", "body", "status", "field", "limit"),
    [
        ("reddis_url", {"value": "x", "reason": "r"}, 404, None, None),
        ("public_port", {"value": 9, "reason": "r"}, 409, None, None),
        ("retry_after_s", {"value": 3_601, "reason": "r"}, 400, "value", 3_600),
        ("retry_after_s", {"value": 0, "reason": "r"}, 400, "value", 1),
        ("retry_after_s", {"value": "soon", "reason": "r"}, 400, "value", None),
        ("retry_after_s", {"value": [1], "reason": "r"}, 400, "value", 1_000),
        ("retry_after_s", {"reason": "r"}, 400, "value", 1_000),
        ("busy_message", {"value": "x" * 501, "reason": "r"}, 400, "value", 500),
        ("busy_message", {"value": "x" * 1_001, "reason": "r"}, 400, "value", 1_000),
        ("retry_after_s", {"value": True, "reason": "r"}, 400, "value", None),
        ("retry_after_s", {"value": 1}, 400, "reason", 500),
        ("retry_after_s", {"value": 1, "reason": ""}, 400, "reason", 500),
        ("retry_after_s", {"value": 1, "reason": "a\nb"}, 400, "reason", 500),
        ("retry_after_s", {"value": 1, "reason": "r" * 501}, 400, "reason", 500),
        ("retry_after_s", {"value": 1, "reason": "r", "by": "b" * 101}, 400, "by", 100),
        ("retry_after_s", {"value": 1, "reason": "r", "colour": 1}, 400, "colour", None),
        ("retry_after_s", [1], 400, "body", None),
    ],
)
async def test_a_refusal_names_field_and_limit_and_writes_nothing(
    service: Service, name: str, body: object, status: int, field: str | None, limit: int | None
) -> None:
    reply = await call(service, "PUT", name, json=body)
    problem = reply.json()
    assert (reply.status, problem.get("field"), problem.get("limit")) == (status, field, limit), problem
    assert (field or name) in problem["detail"]
    offset = (await set_to(service, "retry_after_s", 1)).json()["offset"]
    assert await changes_in_log(service) == [offset]


async def test_unsetting_needs_a_reason_and_a_live_setting(service: Service) -> None:
    for name, query, status, field in (
        ("retry_after_s", {}, 400, "reason"),
        ("retry_after_s", {"reason": "r" * 501}, 400, "reason"),
        ("retry_after_s", {"reason": "r", "colour": "red"}, 400, "colour"),
        ("reddis_url", {"reason": "r"}, 404, None),
        ("public_port", {"reason": "r"}, 409, None),
    ):
        reply = await call(service, "DELETE", name, params=query)
        assert (reply.status, reply.json().get("field")) == (status, field), name
    for name, status in (("reddis_url", 404), ("public_port", 409)):
        assert (await call(service, "GET", name)).status == status


async def test_the_public_listener_serves_none_of_this(service: Service) -> None:
    for path in (CONTROL, f"{CONTROL}/retry_after_s"):
        for method in ("GET", "PUT", "DELETE"):
            async with service.public.request(method, path) as response:
                assert response.status == 403, (method, path)


async def test_a_record_that_is_refused_changes_nothing_and_is_in_health(
    service: Service, writer: LogProducer, caplog: pytest.LogCaptureFixture
) -> None:
    topic = service.topics.control.name

    async def write(key: bytes, value: bytes) -> int:
        return await writer.send(topic, CONTROL_PARTITION, key, value)

    async def control() -> dict[str, Any]:
        found: dict[str, Any] = (await service.call("GET", "/health/ready")).json()["control"]
        return found

    await change(service, "retry_after_s", 5)
    before = (await service.call("GET", CONTROL, admin=True)).json()
    bad = [
        (b"setting:retry_after_s", b"not JSON", "not JSON"),
        (b"setting:nothing", record("nothing", 1)[1], "nothing: unknown setting"),
        (*record("public_port", 9), "public_port: read at the start only"),
        (*record("retry_after_s", 3_601), "retry_after_s: Input should be less than or equal to 3600"),
    ]
    offsets = [await write(key, value) for key, value, _ in bad]
    async with asyncio.timeout(20):
        while f"offset {offsets[-1]}: " not in str((await control())["refused"]):
            await asyncio.sleep(0.02)
    assert (await service.call("GET", "/health/ready")).status == 200, "the sale goes on"
    assert (await service.call("GET", CONTROL, admin=True)).json() == before
    for offset, (_, _, words) in zip(offsets, bad, strict=True):
        lines = [each.getMessage() for each in caplog.records if f"at offset {offset}: " in each.getMessage()]
        assert len(lines) == 1
        assert words in lines[0]
    await change(service, "retry_after_s", 6)
    assert (await control())["refused"] is None


def record(name: str, value: str | int) -> tuple[bytes, bytes]:
    return encode_setting(SettingChange(name, True, value, "a stranger", "none", 1))


# --- what is in force is what counts ------------------------------------------------------------------------


async def test_the_limit_on_requests_in_flight_and_the_words_of_a_refusal_change_live(
    start_ingress: StartIngress,
) -> None:
    service = await start_ingress(wait_timeout_ms=30_000)
    buyers = [asyncio.create_task(service.buy(5, user)) for user in ("u1", "u2")]
    async with asyncio.timeout(20):
        while (await service.figures())["waiters"] < 2:
            await asyncio.sleep(0.02)
    await change(service, "busy_message", "come back later")
    await change(service, "retry_after_s", 7)
    await change(service, "requests_in_flight_max", 2)
    refused = await service.buy(5, "u3")
    assert (refused.status, refused.json()["limit"]) == (429, 2)
    assert (refused.json()["detail"], refused.headers["Retry-After"]) == ("come back later", "7")
    await change(service, "requests_in_flight_max", 3)
    assert (await service.buy_async(5, "u3")).status == 202
    for buyer in buyers:
        buyer.cancel()


async def test_the_limits_on_waiters_and_their_time_change_live(start_ingress: StartIngress) -> None:
    service = await start_ingress(wait_timeout_ms=30_000)
    buyer = asyncio.create_task(service.buy(5, "u1"))
    async with asyncio.timeout(20):
        while not (await service.figures())["waiters"]:
            await asyncio.sleep(0.02)
    await change(service, "waiters_max", 1)
    refused = await service.buy(5, "u2")
    assert (refused.status, refused.json()["limit"]) == (429, 1)
    await change(service, "waiters_max", 2)
    await change(service, "wait_timeout_ms", 1)
    assert (await service.buy(5, "u2")).status == 202
    assert not buyer.done(), "who came earlier, with more time, still waits"
    buyer.cancel()


async def test_the_limit_on_event_streams_changes_live(service: Service) -> None:
    path = f"{REQUESTS}{(await service.buy_async(5, 'u1')).json()['request_id']}/events"
    await change(service, "event_streams_max", 1)
    async with service.public.get(path) as stream:
        assert stream.status == 200
        async with service.public.get(path) as refused:
            assert refused.status == 429
            assert (await refused.json(content_type=None))["limit"] == 1
        await change(service, "event_streams_max", 2)
        async with service.public.get(path) as other:
            assert other.status == 200
            other.close()
        stream.close()


async def test_the_log_level_changes_live(service: Service) -> None:
    ours = logging.getLogger("pipeline")
    before = ours.level, logging.getLogger().level, logging.getLogger("agents").level
    try:
        await change(service, "log_level", "debug")
        assert ours.level == logging.DEBUG
        await change(service, "log_level", "error")
        assert ours.level == logging.ERROR
    finally:
        ours.setLevel(before[0])
        logging.getLogger().setLevel(before[1])
        logging.getLogger("agents").setLevel(before[2])


async def test_no_ingress_starts_if_it_cannot_read_what_is_in_force(
    service: Service, start_ingress: StartIngress
) -> None:
    newer = AIOKafkaProducer(**client_options(service.settings.kafka()))
    await newer.start()
    try:
        await newer.send_and_wait(
            service.topics.control.name, b"{}", b"setting:x", CONTROL_PARTITION, headers=[("v", b"99")]
        )
    finally:
        await newer.stop()
    with pytest.raises(StartFailed, match="has format version 99"):
        await start_ingress(topics=service.topics)


async def test_an_ingress_starts_with_what_is_in_force(service: Service, start_ingress: StartIngress) -> None:
    await change(service, "retry_after_s", 8)
    await change(service, "waiters_max", 11)
    undone = await call(service, "DELETE", "waiters_max", params={"reason": "over"})
    later = await start_ingress(topics=service.topics)
    # The first call: nothing was awaited since the start.
    everything = (await later.call("GET", CONTROL, admin=True)).json()
    values = {each["name"]: each["value"] for each in everything["settings"]}
    assert everything["version"] == undone.json()["offset"]
    assert (values["retry_after_s"], values["waiters_max"]) == (8, 20_000)


async def test_a_stage_of_degradation_and_a_client_limit_are_set_in_a_running_ingress(
    service: Service,
) -> None:
    await change(service, "degradation_stage", 3)
    async with asyncio.timeout(10):
        while (await service.buy_async(5, "u1")).status != 429:
            await asyncio.sleep(0.02)
    await change(service, "degradation_stage", "auto")
    async with asyncio.timeout(10):
        while (await service.buy_async(5, "u1")).status != 202:
            await asyncio.sleep(0.02)
    await change(service, "user_limit_burst", 1)
    await change(service, "user_limit_requests_per_second", 1)
    assert [(await service.buy_async(5, "u2")).status for _ in range(2)] == [202, 429]
    reply = await set_to(service, "trusted_proxies", "10.0.0.1/8")
    assert (reply.status, reply.json()["field"]) == (400, "value")
    assert "host bits" in reply.json()["detail"]
