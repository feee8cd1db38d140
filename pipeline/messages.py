"""The wire formats of every topic: encode, decode, versions.

Commands (`purchase-requests`) and decisions (`purchase-results`) are JSON objects with a `type`. Ids are JSON strings
in every topic. A decision record carries the command that it decides, byte for byte, under `command`: so the decision
log alone is enough to rebuild Redis, and a follower needs no second topic. `source_offset` is always its first field,
so that a follower can drop a repeat before it parses anything.

Version 2 adds key and value of the command to a malformed decision. Version 1 is still read.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

import orjson

from pipeline.domain import limiters
from pipeline.domain.codes import Code
from pipeline.domain.ids import ID_LENGTH_MAX, canonical_id
from pipeline.domain.product import (
    PER_USER_LIMIT_MAX,
    STOCK_MAX,
    Opening,
    Purchases,
    Refusal,
    SaleState,
)
from pipeline.domain.receipts import Receipt

VERSION: Final = 2
PURCHASES_PER_RECORD_MAX = 1_000
IDEMPOTENCY_KEY_LENGTH_MAX = 128
NAME_LENGTH_MAX = 200
TIME_MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999: the end of RFC 3339, and 15 digits, which Lua still holds exactly."""

_ID_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_PRICE = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,4})?", re.ASCII)
_KEY = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
_SOURCE_OFFSET = b'{"source_offset":'
_FIELDS = {
    "purchase": {"type", "product_id", "users", "quantities", "keys"},
    "open": {
        *("type", "product_id", "name", "price", "stock", "start_ms", "end_ms", "state"),
        *("per_user_limit", "rate_limit"),
    },
    "close": {"type", "product_id"},
}


def headers(origin: str) -> tuple[tuple[str, bytes], ...]:
    """The Kafka headers of every record that this system writes: format version, and the process it came from."""
    return (("v", b"%d" % VERSION), ("origin", origin.encode()))


class MalformedCommand(ValueError):
    """A command record that no decider can decide; the message names the field. Stable: it goes into the log."""


# --- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenCommand:
    product_id: str
    opening: Opening


@dataclass(frozen=True, slots=True)
class CloseCommand:
    product_id: str


@dataclass(frozen=True, slots=True)
class PurchaseCommand:
    product_id: str
    purchases: Purchases


Command = PurchaseCommand | OpenCommand | CloseCommand


def is_idempotency_key(text: str) -> bool:
    """Whether this is 1 to 128 visible ASCII characters."""
    return _KEY.fullmatch(text) is not None


def encode_purchases(
    product_id: str,
    users: list[str],
    quantities: list[int] | None = None,
    keys: Mapping[int, str] | None = None,
) -> bytes:
    """The envelope of 1..1,000 purchases of one product. Quantities that are all 1, and no keys, are left out."""
    envelope: dict[str, Any] = {"type": "purchase", "product_id": product_id, "users": users}
    if quantities is not None and any(quantity != 1 for quantity in quantities):
        envelope["quantities"] = quantities
    if keys:
        envelope["keys"] = {str(index): key for index, key in keys.items()}
    return orjson.dumps(envelope)


def encode_open(command: OpenCommand) -> bytes:
    opening = command.opening
    document: dict[str, Any] = {
        "type": "open",
        "product_id": command.product_id,
        "name": opening.name,
        "price": opening.price,
        "stock": opening.stock,
        "start_ms": opening.start_ms,
        "end_ms": opening.end_ms,
        "state": opening.state.value,
        "per_user_limit": opening.per_user_limit,
    }
    if rule := opening.rate_limit:
        document["rate_limit"] = {
            "algorithm": rule.algorithm.value,
            "requests_per_second": rule.requests_per_second,
            "burst": rule.burst,
        }
    return orjson.dumps(document)


def encode_close(product_id: str) -> bytes:
    return orjson.dumps({"type": "close", "product_id": product_id})


def decode_command(key: bytes | None, value: bytes | None) -> Command:
    """The command in a record of `purchase-requests`.

    Raises MalformedCommand. Whatever passes here, the Lua side can take as it is: this is the only gate.
    """
    if value is None:
        raise MalformedCommand("value: missing")
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        raise MalformedCommand("value: not JSON") from None
    if type(document) is not dict:
        raise MalformedCommand("value: not a JSON object")
    product_id = document.get("product_id")
    if type(product_id) is not str or canonical_id(product_id) is None:
        raise MalformedCommand("product_id: not an id")
    if key is None or key != product_id.encode():
        raise MalformedCommand("key: not the product_id")
    kind = document.get("type")
    if type(kind) is not str or kind not in _FIELDS:
        raise MalformedCommand("type: unknown")
    # Nothing unknown goes on to Lua, whose JSON parser has other limits (of nesting, for one) than this one.
    if unknown := document.keys() - _FIELDS[kind]:
        raise MalformedCommand(f"{len(unknown)} unknown field(s)")
    if kind == "purchase":
        return PurchaseCommand(product_id, _purchases(document))
    if kind == "open":
        return OpenCommand(product_id, _opening(document))
    return CloseCommand(product_id)


def _purchases(document: dict[str, Any]) -> Purchases:
    users = document.get("users")
    if type(users) is not list or not 1 <= len(users) <= PURCHASES_PER_RECORD_MAX:
        raise MalformedCommand("users: not a list of 1 to 1000")
    # A user at a time costs ten times this, and a decider reads hundreds of thousands a second.
    try:
        joined = "".join(users)
    except TypeError:
        raise MalformedCommand("users: not all strings") from None
    lengths = set(map(len, users))
    if 0 in lengths or max(lengths) > ID_LENGTH_MAX or not joined.isascii():
        raise MalformedCommand("users: not all ids")
    if joined.encode().translate(None, _ID_BYTES):
        raise MalformedCommand("users: not all ids")
    quantities = document.get("quantities")
    if "quantities" in document and (
        type(quantities) is not list
        or len(quantities) != len(users)
        or any(type(quantity) is not int for quantity in quantities)
    ):
        raise MalformedCommand("quantities: not a list of as many whole numbers as there are users")
    return Purchases(users, quantities, _keys(document, len(users)))


def _keys(document: dict[str, Any], count: int) -> dict[int, str]:
    if "keys" not in document:
        return {}
    keys = document["keys"]
    if type(keys) is not dict:
        raise MalformedCommand("keys: not an object")
    places = {str(index): index for index in range(count)}
    for place, key in keys.items():
        if place not in places or type(key) is not str or not is_idempotency_key(key):
            raise MalformedCommand("keys: not index to 1 to 128 visible ASCII characters")
    return {places[place]: key for place, key in keys.items()}


def _whole(document: Mapping[str, Any], name: str, low: int, high: int) -> int:
    number = document.get(name)
    if type(number) is not int or not low <= number <= high:
        raise MalformedCommand(f"{name}: not a whole number from {low} to {high}")
    return number


def _opening(document: dict[str, Any]) -> Opening:
    name, price, state = document.get("name"), document.get("price"), document.get("state")
    if type(name) is not str or len(name) > NAME_LENGTH_MAX:
        raise MalformedCommand(f"name: not a string of up to {NAME_LENGTH_MAX} characters")
    if type(price) is not str or not _PRICE.fullmatch(price):
        raise MalformedCommand("price: not a decimal string")
    if state not in (SaleState.ACTIVE, SaleState.PAUSED):
        raise MalformedCommand("state: not active or paused")
    start_ms = _whole(document, "start_ms", 0, TIME_MS_MAX)
    return Opening(
        name=name,
        price=price,
        stock=_whole(document, "stock", 0, STOCK_MAX),
        start_ms=start_ms,
        end_ms=_whole(document, "end_ms", start_ms, TIME_MS_MAX),
        state=SaleState(state),
        per_user_limit=_whole(document, "per_user_limit", 1, PER_USER_LIMIT_MAX),
        rate_limit=_rule(document["rate_limit"]) if "rate_limit" in document else None,
    )


def _rule(document: Any) -> limiters.Rule:
    if type(document) is not dict or document.keys() != {"algorithm", "requests_per_second", "burst"}:
        raise MalformedCommand("rate_limit: not algorithm, requests_per_second and burst")
    if document["algorithm"] not in list(limiters.Algorithm):
        raise MalformedCommand("rate_limit.algorithm: unknown")
    return limiters.Rule(
        limiters.Algorithm(document["algorithm"]),
        _whole(document, "requests_per_second", 1, limiters.REQUESTS_PER_SECOND_MAX),
        _whole(document, "burst", 1, limiters.BURST_MAX),
    )


# --- decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What one buyer is told."""

    code: Code
    remaining_stock: int | None
    order_id: str | None
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class PurchaseResult:
    """The decision on a record of purchases. `held` as in `domain.product.Decision`; `limiter` is the state after."""

    source_offset: int
    time_ms: int
    product_id: str
    codes: list[int]
    held: dict[int, str]
    stock: int | None
    sold: int | None
    price: str | None
    limiter: str | None
    retry_after_ms: int | None
    purchases: Purchases

    def winners(self) -> Iterator[int]:
        """The indexes of the purchases that took stock."""
        return (i for i, code in enumerate(self.codes) if code == Code.SUCCESS and i not in self.held)

    def answer(self, partition: int, index: int) -> Answer:
        """What the buyer at this index is told; raises IndexError for an index that the record does not have."""
        code = Code(self.codes[index])
        remaining = self.stock
        if remaining is not None:
            remaining += sum(self.purchases.quantity(i) for i in self.winners() if i > index)
        order_id = self.held.get(index)
        if order_id is None and code is Code.SUCCESS:
            order_id = str(Receipt(partition, self.source_offset, index))
        return Answer(code, remaining, order_id, self.retry_after_ms if code is Code.BUSY else None)


@dataclass(frozen=True, slots=True)
class OpenResult:
    source_offset: int
    time_ms: int
    product_id: str
    refusal: Refusal | None
    opening: Opening


@dataclass(frozen=True, slots=True)
class CloseResult:
    source_offset: int
    time_ms: int
    product_id: str
    refusal: Refusal | None


class RawCommand(NamedTuple):
    """Key and value of a command record as they came."""

    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class MalformedResult:
    """The decision on a record that is no command. `command` is None in a decision of version 1."""

    source_offset: int
    time_ms: int
    error: str
    command: RawCommand | None


Result = PurchaseResult | OpenResult | CloseResult | MalformedResult


def peek_source_offset(value: bytes) -> int:
    """The source offset of a decision record, without parsing the rest. Raises ValueError if it is not one."""
    if not value.startswith(_SOURCE_OFFSET):
        raise ValueError("not a decision record: it does not begin with source_offset")
    return int(value[len(_SOURCE_OFFSET) : value.index(b",", len(_SOURCE_OFFSET))])


def malformed_members(error: str, command: RawCommand) -> bytes:
    """The members of a malformed decision that the command determines, as JSON without the braces."""
    key, value = (None if part is None else base64.b64encode(part).decode() for part in command)
    return orjson.dumps({"error": error, "key": key, "value": value})[1:-1]


def is_malformed(value: bytes) -> bool:
    """Whether this decision record says of its command that it is none."""
    kind = value.index(b",") + 1
    return value.startswith(b'"type":"malformed"', kind)


def has_winner(value: bytes) -> bool:
    """Whether this decision record may have a winner, without parsing it. (A repeated win has the same code.)"""
    start = value.find(b'"codes":[')
    if start < 0:
        return False
    end = value.index(b"]", start)
    # The code of a win is the only positive one.
    return value.find(b"[1", start, end) >= 0 or value.find(b",1", start, end) >= 0


def count_of_codes(value: bytes) -> int:
    """How many purchases a decision record answers, without parsing it; 0 for a record of another type."""
    start = value.find(b'"codes":[')
    return 0 if start < 0 else value.count(b",", start, value.index(b"]", start)) + 1


def shows_stock(value: bytes) -> bool:
    """Whether a decision record shows its product on sale with stock left, without parsing it.

    Only the decider's own words count: the command, which stands last, may hold any bytes.
    """
    if not value.startswith(b'"type":"purchase"', value.index(b",") + 1):
        return False
    start = value.index(b"[") + 1
    if value.startswith((b"-5", b"-6"), start):
        return False
    after = _after_codes(value)
    return value.startswith(b',"stock":', after) and not value.startswith(b',"stock":0,', after)


def shows_opened(value: bytes) -> bool:
    """Whether a decision record shows that its product was opened at some time, without parsing it.

    As in `shows_stock`, only the decider's own words count. Raises ValueError for what is no decision record.
    """
    kind = value.index(b",") + 1
    if value.startswith(b'"type":"purchase"', kind):
        return value.startswith(b',"stock":', _after_codes(value))
    if value.startswith((b'"type":"open"', b'"type":"close"'), kind):
        return value.find(b'"refusal":"never_opened"', 0, value.index(b',"command":')) < 0
    return False


def _after_codes(value: bytes) -> int:
    """Where a decision on purchases goes on after its codes and, if there are any, its held orders."""
    after = value.index(b"]", value.index(b"[")) + 1
    return value.index(b"}", after) + 1 if value.startswith(b',"held":{', after) else after


def decode_result(value: bytes) -> Result:
    """A record of `purchase-results`. Raises ValueError or KeyError on anything that no decider wrote."""
    document = orjson.loads(value)
    source_offset, time_ms = document["source_offset"], document["time_ms"]
    kind = document["type"]
    if kind == "malformed":
        return MalformedResult(source_offset, time_ms, document["error"], _raw_command(document))
    command = document["command"]
    refusal = Refusal(document["refusal"]) if document.get("refusal") else None
    if kind == "open":
        return OpenResult(source_offset, time_ms, command["product_id"], refusal, _opening(command))
    if kind == "close":
        return CloseResult(source_offset, time_ms, command["product_id"], refusal)
    if kind != "purchase":
        raise ValueError(f"unknown decision type {kind!r}")
    keys = command.get("keys")
    return PurchaseResult(
        source_offset,
        time_ms,
        command["product_id"],
        document["codes"],
        {int(index): order_id for index, order_id in document["held"].items()} if "held" in document else {},
        document.get("stock"),
        document.get("sold"),
        document.get("price"),
        document.get("limiter"),
        document.get("retry_after_ms"),
        Purchases(
            command["users"],
            command.get("quantities"),
            {int(index): key for index, key in keys.items()} if keys else {},
        ),
    )


def _raw_command(document: Mapping[str, Any]) -> RawCommand | None:
    if "value" not in document:
        return None
    key, value = (
        None if text is None else base64.b64decode(text, validate=True)
        for text in (document["key"], document["value"])
    )
    return RawCommand(key, value)


# --- orders ----------------------------------------------------------------------------------------------------------


def created_orders(result: PurchaseResult, partition: int) -> list[bytes]:
    """The CREATED records of the orders topic for the winners of this decision, in its order."""
    if result.price is None:
        return []
    # Formatted by hand, because all that varies is an id or a number and there may be 200,000 of them a second.
    prefix = '{"event":"CREATED","order_id":"%d-%d-' % (partition, result.source_offset)
    middle = '","product_id":"%s","user_id":"' % result.product_id
    tail = ',"at_ms":%d,"pay_before_ms":null}' % result.time_ms
    price, purchases = Decimal(result.price), result.purchases

    def rest(quantity: int) -> str:
        return '","quantity":%d,"price":"%s","amount":"%s"%s' % (
            *(quantity, result.price, price * quantity),
            tail,
        )

    single, users = rest(1), purchases.users
    if purchases.quantities is None:
        return [f"{prefix}{i}{middle}{users[i]}{single}".encode() for i in result.winners()]
    return [f"{prefix}{i}{middle}{users[i]}{rest(purchases.quantity(i))}".encode() for i in result.winners()]


# --- dead letters ----------------------------------------------------------------------------------------------------


def dead_letter_headers(
    topic: str, partition: int, source_offset: int, error: str
) -> tuple[tuple[str, bytes], ...]:
    """The headers of a dead letter: where the record stood, and what is wrong with it. Its value is as it came."""
    return (
        ("topic", topic.encode()),
        ("partition", b"%d" % partition),
        ("offset", b"%d" % source_offset),
        ("error", error.encode()),
    )
