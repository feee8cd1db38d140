"""Real decisions of the Lua scripts against the schemas of `topics.yaml`."""

import orjson
from commands import encode_close
from jsonschema import Draft202012Validator

from pipeline.domain import limiters
from pipeline.domain.product import Opening
from pipeline.kafka.topics import load_topics
from pipeline.messages.commands import OpenCommand, RawCommand, encode_open, encode_purchases
from pipeline.messages.decisions import (
    ControlDecision,
    MalformedDecision,
    OpenDecision,
    PurchaseDecision,
    decode_decision,
    malformed_members,
)
from pipeline.messages.orders import created_orders
from pipeline.settings import Profile
from pipeline.stock.store import StockStore
from pipeline.stock.values import PreparedCommand


async def test_real_decisions_match_the_schemas(redis_url: str) -> None:
    topics = load_topics(Profile.LOCAL)
    rule = limiters.Rule(limiters.Algorithm.TOKEN_BUCKET, 1, 3)
    opening = Opening("Watch", "9.90", 3, 0, 10_000, per_user_limit=2, rate_limit=rule)
    values = [
        encode_purchases("1001", ["early"]),
        encode_close("1001"),
        encode_open(OpenCommand("1001", opening)),
        encode_open(OpenCommand("1001", opening)),
        encode_purchases("1001", ["a", "b", "a"], [1, 2, 2], {0: "k"}),
        encode_purchases("1001", ["a", "c", "d"], None, {0: "k"}),
        encode_purchases("1001", ["e"], [0]),
        encode_close("1001"),
        encode_open(OpenCommand("1001", opening)),
    ]
    commands = [PreparedCommand(offset, 100, "1001", value) for offset, value in enumerate(values)]
    members = malformed_members("users: not all ids", RawCommand(None, b"\n{\xff"))
    commands.append(PreparedCommand(len(values), 100, None, members))
    store = StockStore(redis_url, 5_000)
    try:
        records = await store.decide(0, -1, 0, commands)
    finally:
        await store.close()
    results = [decode_decision(record) for record in records]
    seen = {type(result) for result in results}
    assert seen == {
        PurchaseDecision,
        OpenDecision,
        ControlDecision,
        MalformedDecision,
    }
    fields = set()
    orders: list[bytes] = []
    for record, result in zip(records, results, strict=True):
        Draft202012Validator(topics.results.payload).validate(orjson.loads(record))
        fields |= orjson.loads(record).keys()
        if isinstance(result, PurchaseDecision):
            orders += created_orders(result, 0)
    assert {"held", "stock", "limiter", "retry_after_ms", "refusal", "error"} <= fields
    assert len(orders) == 2
    for order in orders:
        Draft202012Validator(topics.orders.payload).validate(orjson.loads(order))
