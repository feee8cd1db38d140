"""Handmade decision records, as a decider writes them."""

import json
from typing import Any

from pipeline.domain.limiters import Rule
from pipeline.domain.product import Opening
from pipeline.messages.commands import OpenCommand, encode_open
from pipeline.messages.decisions import PurchaseDecision, decode_decision


def _record(offset: int, time_ms: int, kind: str, command: dict[str, Any], **fields: Any) -> bytes:
    document = {"source_offset": offset, "type": kind, "time_ms": time_ms, **fields, "command": command}
    return json.dumps(document, separators=(",", ":")).encode()


def opened(
    offset: int,
    product_id: str,
    stock: int,
    time_ms: int = 1_000,
    rate_limit: Rule | None = None,
    **fields: Any,
) -> bytes:
    opening = Opening("Phone", "9.90", stock, 0, 10_000, rate_limit=rate_limit)
    command = json.loads(encode_open(OpenCommand(product_id, opening)))
    return _record(offset, time_ms, "open", command, **fields)


def closed(offset: int, product_id: str, time_ms: int = 1_000, **fields: Any) -> bytes:
    return _record(offset, time_ms, "close", {"type": "close", "product_id": product_id}, **fields)


def controlled(offset: int, command: bytes, time_ms: int = 1_000, **fields: Any) -> bytes:
    """The decision on this command of an operator."""
    document = json.loads(command)
    return _record(offset, time_ms, document["type"], document, **fields)


def bought(offset: int, product_id: str, codes: list[int], time_ms: int = 1_000, **fields: Any) -> bytes:
    users = [f"u{offset}-{index}" for index in range(len(codes))]
    if "stock" in fields:
        fields.setdefault("price", "9.90")
    command = {"type": "purchase", "product_id": product_id, "users": users}
    return _record(offset, time_ms, "purchase", command, codes=codes, **fields)


def malformed(offset: int, time_ms: int = 1_000) -> bytes:
    document = {
        "source_offset": offset,
        "type": "malformed",
        "time_ms": time_ms,
        "error": "key: not the product_id",
        "key": None,
        "value": "e30=",
    }
    return json.dumps(document, separators=(",", ":")).encode()


def decoded_purchase(record: bytes) -> PurchaseDecision:
    decision = decode_decision(record)
    assert isinstance(decision, PurchaseDecision)
    return decision
