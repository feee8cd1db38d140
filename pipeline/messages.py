"""The wire formats of every topic: encode, decode, versions.

Commands (`purchase-requests`) and decisions (`purchase-results`) are JSON objects with a `type`. Ids are JSON strings
in every topic. A decision record carries the command that it decides, byte for byte, under `command`: so the decision
log alone is enough to rebuild Redis, and a follower needs no second topic. `source_offset` is always its first field,
so that a follower can drop a repeat before it parses anything.

Version 2 adds key and value of the command to a malformed decision. Version 1 is still read.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

import orjson

from pipeline.domain import limiters
from pipeline.domain.codes import DECIDED_CODES, Code
from pipeline.domain.ids import ID_LENGTH_MAX, canonical_id
from pipeline.domain.product import (
    PER_USER_LIMIT_MAX,
    STOCK_MAX,
    Opening,
    Purchases,
    Refusal,
    SaleState,
)
from pipeline.domain.receipts import Receipt, parse_receipt

VERSION: Final = 2
PURCHASES_PER_RECORD_MAX = 1_000
COMMAND_BYTES_MAX = 1_048_588
"""Of key and value. A malformed decision carries them as base64, which is a third more."""
COMMAND_DEPTH_MAX = 500
DECISION_DEPTH_MAX = 1_000
"""Lua's JSON parser refuses what is nested deeper; in a decision, the command is one level deeper."""
IDEMPOTENCY_KEY_LENGTH_MAX = 128
NAME_LENGTH_MAX = 200
TIME_MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999: the end of RFC 3339, and 15 digits, which Lua still holds exactly."""

_ID_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_PRICE = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,4})?", re.ASCII)
_KEY = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
_BRACKET_OR_STRING = re.compile(rb'[\[\]{}]|"(?:[^"\\]|\\.)*+"', re.DOTALL)
"""Possessive: what may be tried again is kept, at a hundred bytes a character."""
_VERSION = re.compile(rb"[0-9]{1,9}")
_KNOWN_VERSIONS = frozenset(b"%d" % version for version in range(1, VERSION + 1))
_SOURCE_OFFSET = re.compile(rb'\{"source_offset":(0|[1-9][0-9]{0,17}),')
_LIMITER = re.compile(r"[0-9]{1,15}:[0-9]{1,15}:[0-9]{1,15}", re.ASCII)
_CODES = frozenset(map(int, DECIDED_CODES))
_FIELDS = {
    "purchase": {"type", "product_id", "users", "quantities", "keys"},
    "open": {
        *("type", "product_id", "name", "price", "stock", "start_ms", "end_ms", "state"),
        *("per_user_limit", "rate_limit"),
    },
    "close": {"type", "product_id"},
}
_RESULT_FIELDS = {
    "purchase": {
        *("source_offset", "type", "time_ms", "codes", "held", "stock", "sold", "price", "limiter"),
        *("retry_after_ms", "command"),
    },
    "open": {"source_offset", "type", "time_ms", "refusal", "command"},
    "close": {"source_offset", "type", "time_ms", "refusal", "command"},
    "malformed": {"source_offset", "type", "time_ms", "error", "key", "value"},
}
_NEVER_NULL = {kind: fields - {"key", "value"} for kind, fields in _RESULT_FIELDS.items()}


def headers(origin: str) -> tuple[tuple[str, bytes], ...]:
    """The Kafka headers of every record that this system writes: format version, and the process it came from."""
    return (("v", b"%d" % VERSION), ("origin", origin.encode()))


class NewerFormat(Exception):
    """A record in a format version above `VERSION`; the message says which, and where it stands."""


def refuse_newer(topic: str, partition: int, records: Iterable[Any]) -> None:
    """Raises NewerFormat if this version cannot read one of these records, which are as aiokafka brings them.

    A record without a version is another program's, and counts as version 1.
    """
    for record in records:
        for name, content in record.headers:
            if name == "v" and content not in _KNOWN_VERSIONS and _is_newer(content):
                raise NewerFormat(
                    f"{topic}/{partition}: the record at {record.offset} is of format version {content.decode()}, "
                    f"this process reads up to {VERSION}: start the newer version of this program"
                )


def _is_newer(version: bytes | None) -> bool:
    return version is not None and _VERSION.fullmatch(version) is not None and int(version) > VERSION


class MalformedCommand(ValueError):
    """A command record that no decider can decide; the message names the field. Stable: it goes into the log."""


class OversizedCommand(MalformedCommand):
    """A command that no decision can carry. A broker lets it pass if it was compressed, or has a higher limit."""


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
    if (size := len(key or b"") + len(value)) > COMMAND_BYTES_MAX:
        raise OversizedCommand(f"key and value: {size} bytes, the limit is {COMMAND_BYTES_MAX}")
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        raise MalformedCommand("value: not JSON") from None
    if is_nested_deeper(value, COMMAND_DEPTH_MAX):
        raise MalformedCommand(f"value: nested deeper than {COMMAND_DEPTH_MAX}")
    if type(document) is not dict:
        raise MalformedCommand("value: not a JSON object")
    product_id = _product_id(document)
    if key is None or key != product_id.encode():
        raise MalformedCommand("key: not the product_id")
    return _command(product_id, document)


def is_nested_deeper(value: bytes, depth_max: int) -> bool:
    """Whether this JSON has arrays and objects in one another deeper than `depth_max`, wherever they are.

    What was parsed cannot tell: of two members of one name it holds the last.
    """
    if value.count(b"[") + value.count(b"{") <= depth_max:
        return False
    depth = 0
    for bracket in _BRACKET_OR_STRING.findall(value):
        if bracket in (b"[", b"{"):
            depth += 1
            if depth > depth_max:
                return True
        elif bracket in (b"]", b"}"):
            depth -= 1
    return False


def _product_id(document: dict[str, Any]) -> str:
    product_id = document.get("product_id")
    if type(product_id) is not str or canonical_id(product_id) is None:
        raise MalformedCommand("product_id: not an id")
    return product_id


def _command(product_id: str, document: dict[str, Any]) -> Command:
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


NOTHING_KEPT: Final = RawCommand(None, None)
"""In the decision on a command that is too large."""


@dataclass(frozen=True, slots=True)
class MalformedResult:
    """The decision on a record that is no command. `command` is None in a decision of version 1."""

    source_offset: int
    time_ms: int
    error: str
    command: RawCommand | None


Result = PurchaseResult | OpenResult | CloseResult | MalformedResult


class NotADecision(ValueError):
    """A record of `purchase-results` that no decider wrote: everybody passes it over."""

    def __init__(self, why: str) -> None:
        super().__init__(f"no decider wrote this record: {why}")


def peek_source_offset(value: bytes | None) -> int:
    """The source offset of a decision record, without looking at the rest. Raises NotADecision."""
    found = _SOURCE_OFFSET.match(value or b"")
    if found is None:
        raise NotADecision("it does not begin with source_offset" if value is not None else "it has no value")
    return int(found[1])


def kept_of(error: MalformedCommand, key: bytes | None, value: bytes | None) -> RawCommand:
    """What the decision carries of a malformed command: nothing of one that is too large."""
    return NOTHING_KEPT if isinstance(error, OversizedCommand) else RawCommand(key, value)


def malformed_members(error: str, command: RawCommand) -> bytes:
    """The members of a malformed decision that the command determines, as JSON without the braces."""
    key, value = (None if part is None else base64.b64encode(part).decode() for part in command)
    return orjson.dumps({"error": error, "key": key, "value": value})[1:-1]


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

    As in `shows_stock`, only the decider's own words count.
    """
    kind = value.index(b",") + 1
    if value.startswith(b'"type":"purchase"', kind):
        return value.startswith(b',"stock":', _after_codes(value))
    if value.startswith((b'"type":"open"', b'"type":"close"'), kind):
        return b'"refusal":"never_opened"' not in value.partition(b',"command":')[0]
    return False


def _after_codes(value: bytes) -> int:
    """Where a decision on purchases goes on after its codes and, if there are any, its held orders."""
    after = value.index(b"]", value.index(b"[")) + 1
    return value.index(b"}", after) + 1 if value.startswith(b',"held":{', after) else after


def decode_result(value: bytes | None) -> Result:
    """A record of `purchase-results`, checked whole: who passes strangers over must not be led by half of one.

    Raises NotADecision.
    """
    source_offset = peek_source_offset(value)
    try:
        document = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        raise NotADecision("not JSON") from None
    if is_nested_deeper(value or b"", DECISION_DEPTH_MAX):
        raise NotADecision(f"nested deeper than {DECISION_DEPTH_MAX}")
    kind = document.get("type")
    if type(kind) is not str or kind not in _RESULT_FIELDS:
        raise NotADecision("type: unknown")
    # The scripts read it, too, and their JSON parser has another limit of nesting than this one.
    if any(isinstance(document[name], dict | list) for name in document.keys() - _RESULT_FIELDS[kind]):
        raise NotADecision("an unknown field with fields of its own")
    # To Lua null is no absence, but a value that is true.
    for name in _NEVER_NULL[kind] & document.keys():
        if document[name] is None:
            raise NotADecision(f"{name}: null")
    if document["source_offset"] != source_offset:
        raise NotADecision("source_offset: there twice")
    try:
        time_ms = _whole(document, "time_ms", 0, TIME_MS_MAX)
        if kind == "malformed":
            return _malformed_result(source_offset, time_ms, document)
        return _result(source_offset, time_ms, kind, document)
    except MalformedCommand as error:
        raise NotADecision(str(error)) from None


def _result(source_offset: int, time_ms: int, kind: str, document: dict[str, Any]) -> Result:
    decided = document.get("command")
    if type(decided) is not dict or decided.get("type") != kind:
        raise NotADecision(f"command: not of type {kind}")
    command = _command(_product_id(decided), decided)
    if isinstance(command, PurchaseCommand):
        return _purchase_result(source_offset, time_ms, command, document)
    refusal = document.get("refusal")
    if refusal is not None and refusal not in list(Refusal):
        raise NotADecision("refusal: unknown")
    refused = None if refusal is None else Refusal(refusal)
    if isinstance(command, OpenCommand):
        return OpenResult(source_offset, time_ms, command.product_id, refused, command.opening)
    return CloseResult(source_offset, time_ms, command.product_id, refused)


def _purchase_result(
    source_offset: int, time_ms: int, command: PurchaseCommand, document: dict[str, Any]
) -> PurchaseResult:
    codes, count = document.get("codes"), len(command.purchases.users)
    # The types, too: 1.0 and true are in a set that holds 1.
    if (
        type(codes) is not list
        or len(codes) != count
        or set(map(type, codes)) != {int}
        or not _CODES.issuperset(codes)
    ):
        raise NotADecision("codes: not a code for each user")
    stock, sold, price = document.get("stock"), document.get("sold"), document.get("price")
    if stock is None:
        if not (sold is None and price is None):
            raise NotADecision("stock: missing beside sold or price")
    else:
        # Below zero they would be a fault of a decider's, which the audit has to see.
        _whole(document, "stock", -STOCK_MAX, STOCK_MAX)
        _whole(document, "sold", -STOCK_MAX, STOCK_MAX)
        if type(price) is not str or not _PRICE.fullmatch(price):
            raise NotADecision("price: not a decimal string")
    limiter, retry_after_ms = document.get("limiter"), document.get("retry_after_ms")
    if limiter is not None and (type(limiter) is not str or not _LIMITER.fullmatch(limiter)):
        raise NotADecision("limiter: not level:before:at")
    if retry_after_ms is not None:
        _whole(document, "retry_after_ms", 1, TIME_MS_MAX)
    return PurchaseResult(
        source_offset,
        time_ms,
        command.product_id,
        codes,
        _held(document, count),
        stock,
        sold,
        price,
        limiter,
        retry_after_ms,
        command.purchases,
    )


def _held(document: dict[str, Any], count: int) -> dict[int, str]:
    if "held" not in document:
        return {}
    held, places = document["held"], {str(index): index for index in range(count)}
    if type(held) is not dict or not held.keys() <= places.keys():
        raise NotADecision("held: not by index of a purchase")
    if any(type(order_id) is not str or parse_receipt(order_id) is None for order_id in held.values()):
        raise NotADecision("held: not order ids")
    return {places[place]: order_id for place, order_id in held.items()}


def _malformed_result(source_offset: int, time_ms: int, document: dict[str, Any]) -> MalformedResult:
    error = document.get("error")
    if type(error) is not str:
        raise NotADecision("error: not a string")
    if document.keys().isdisjoint(("key", "value")):
        return MalformedResult(source_offset, time_ms, error, None)
    return MalformedResult(
        source_offset, time_ms, error, RawCommand(_raw(document, "key"), _raw(document, "value"))
    )


def _raw(document: dict[str, Any], name: str) -> bytes | None:
    if name not in document:
        raise NotADecision(f"{name}: missing")
    text = document[name]
    if text is None:
        return None
    try:
        # Text that is not ASCII is a ValueError, too.
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise NotADecision(f"{name}: not base64") from None


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
