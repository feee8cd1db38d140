"""`topics.yaml`: what it defines, which faults are refused, and that its schemas match the records we write."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from commands import encode_close
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError
from references import references

from pipeline.domain import limiters, product
from pipeline.domain.codes import DECIDED_CODES, Code
from pipeline.domain.ids import canonical_id
from pipeline.domain.product import Opening, Purchases, Refusal, SaleState
from pipeline.domain.receipts import Receipt, parse_receipt
from pipeline.kafka import producer
from pipeline.kafka.record_format import record_headers
from pipeline.kafka.topics import BadTopics, Topic, load_topics
from pipeline.messages.commands import (
    CONTROL_FIELDS,
    NAME_LENGTH_MAX,
    PURCHASES_PER_RECORD_MAX,
    MalformedCommand,
    OpenCommand,
    decode_command,
    encode_open,
    encode_purchases,
)
from pipeline.messages.dead_letters import dead_letter_headers
from pipeline.messages.decisions import PurchaseDecision, decode_decision, peek_source_offset
from pipeline.messages.fields import BY_LENGTH_MAX, REASON_LENGTH_MAX, TIME_MS_MAX
from pipeline.messages.orders import created_orders
from pipeline.messages.schemas import payloads, with_schemas
from pipeline.process.configuration import load_settings
from pipeline.settings import Profile

FILE = Path(__file__).parents[2] / "topics.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
TOPICS = load_topics(Profile.LOCAL)

ids = st.from_regex(re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII), fullmatch=True)
keys = st.from_regex(re.compile(r"[!-~]{1,128}", re.ASCII), fullmatch=True)
prices = st.from_regex(re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,4})?", re.ASCII), fullmatch=True)
moments = st.integers(0, TIME_MS_MAX)


def validate(topic: Topic, value: bytes) -> None:
    Draft202012Validator(topic.payload).validate(orjson.loads(value))


# --- the file -----------------------------------------------------------------------------------------------


def test_the_topics_are_those_of_the_api() -> None:
    assert {topic.name: (topic.key, topic.cleanup) for topic in TOPICS.all()} == {
        "seckill.purchase-requests.v1": ("product_id", "delete"),
        "seckill.purchase-results.v1": ("product_id", "delete"),
        "seckill.orders.v1": ("product_id", "delete"),
        "seckill.control.v1": (
            "setting:{name}, breaker:{partition} or degradation:{worker}",
            "compact",
        ),
        "seckill.dead-letters.v1": ("key of the malformed command", "delete"),
    }


def test_the_profile_sets_the_number_of_replicas() -> None:
    cluster = load_topics(Profile.CLUSTER)
    assert {(topic.replication, topic.min_insync_replicas) for topic in TOPICS.all()} == {(1, 1)}
    assert {(topic.replication, topic.min_insync_replicas) for topic in cluster.all()} == {(3, 2)}


def test_topics_whose_time_matters_have_the_time_of_the_broker() -> None:
    assert [topic.log_append_time for topic in (TOPICS.requests, TOPICS.results, TOPICS.orders)] == [True] * 3


def test_the_log_that_redis_is_rebuilt_from_is_kept_forever() -> None:
    assert TOPICS.results.retention_ms == -1


def test_the_history_of_live_settings_is_kept_for_30_days() -> None:
    lags = {topic.name: topic.configs().get("min.compaction.lag.ms") for topic in TOPICS.all()}
    assert lags.pop(TOPICS.control.name) == str(30 * 24 * 3_600_000)
    assert set(lags.values()) == {None}, "only a compacted topic has this"


def test_the_largest_command_fits_into_a_result_and_a_dead_letter() -> None:
    largest_headers = 1_024
    for topic in (TOPICS.results, TOPICS.dead_letters):
        assert producer.RECORD_BYTES_MAX + largest_headers < topic.record_bytes_max
    assert TOPICS.requests.record_bytes_max + largest_headers < producer.RECORD_BYTES_MAX
    assert all(topic.record_bytes_max >= producer.BATCH_BYTES_MAX for topic in TOPICS.all())


def test_every_header_that_we_write_is_documented() -> None:
    assert dict(record_headers("x")).keys() <= DOCUMENT["headers"].keys()
    assert dict(dead_letter_headers("t", 0, 0, "e")).keys() == TOPICS.dead_letters.headers.keys()


def drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for step in path[:-1]:
            document = document[step]
        del document[path[-1]]

    return change


def put(value: object, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("topics", "orders"), ["orders", "required"]),
        (drop("topics", "orders", "retention_ms"), ["orders.retention_ms", "required"]),
        (put({}, "topics", "payments"), ["payments"]),
        (put(7, "topics", "orders"), ["topics.orders", "7"]),
        (put("4", "topics", "orders", "partitions"), ["orders.partitions", "'4'"]),
        (put(0, "topics", "control", "partitions"), ["control.partitions", "0"]),
        (put(True, "topics", "control", "partitions"), ["control.partitions", "True"]),
        (put(1_001, "topics", "control", "partitions"), ["control.partitions", "1000"]),
        (put(8, "topics", "requests", "partitions"), ["results.partitions is 4", "requests.partitions 8"]),
        (put(8, "topics", "results", "partitions"), ["results.partitions is 8", "requests.partitions 4"]),
        (put(8, "topics", "orders", "partitions"), ["orders.partitions is 8", "requests.partitions 4"]),
        *(
            (
                put(2_097_151, "topics", name, "record_bytes_max"),
                [f"{name}.record_bytes_max", "at least 2097152"],
            )
            for name in ("results", "dead_letters")
        ),
        (put("a b", "topics", "control", "name"), ["control.name", "'a b'"]),
        (put("seckill.orders.v1", "topics", "control", "name"), ["seckill.orders.v1", "more than once"]),
        (put("shrink", "topics", "control", "cleanup"), ["control.cleanup", "'shrink'"]),
        (put(-2, "topics", "control", "retention_ms"), ["control.retention_ms", "-2"]),
        (put(0, "topics", "control", "retention_ms"), ["control.retention_ms", "0"]),
        (put("yes", "topics", "control", "log_append_time"), ["control.log_append_time", "'yes'"]),
        (put(1, "topics", "control", "color"), ["control.color"]),
        (put(3, "topics", "control", "min_insync_replicas"), ["control", "min_insync_replicas 3", "1"]),
        (put("text", "topics", "control", "payload"), ["control.payload", "'text'"]),
        (put(2, "version"), ["version", "2"]),
        (drop("profiles", "local"), ["profiles.local"]),
        (put({"replication": 1}, "profiles", "local"), ["requests.min_insync_replicas"]),
        (drop("definitions"), ["definitions"]),
    ],
)
def test_a_fault_is_reported_with_topic_and_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: list[str]
) -> None:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(BadTopics) as refusal:
        load_topics(Profile.LOCAL, file)
    for word in ["mine.yaml", *words]:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: [", "mine.yaml"),
        ("version: 1\nversion: 1", "version appears twice"),
        ("{a: 1}: 2", "mine.yaml"),
        ("- 1", "mine.yaml"),
        ("", "mine.yaml"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(BadTopics, match=word):
        load_topics(Profile.LOCAL, file)


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadTopics, match=r"nowhere\.yaml"):
        load_topics(Profile.LOCAL, tmp_path / "nowhere.yaml")


def test_the_environment_may_name_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["topics"]["orders"]["name"] = "mine.orders"
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(document))
    monkeypatch.setenv("SECKILL_TOPICS_FILE", str(file))
    assert load_topics(Profile.LOCAL, load_settings().topics_file).orders.name == "mine.orders"


# --- payloads -----------------------------------------------------------------------------------------------


def test_every_payload_is_a_json_schema() -> None:
    for topic in TOPICS.all():
        Draft202012Validator.check_schema(topic.payload)


def test_every_definition_exists_and_is_used() -> None:
    used = {reference.removeprefix("#/$defs/") for reference in references(DOCUMENT)}
    assert used == DOCUMENT["definitions"].keys()


def test_the_schemas_are_those_of_the_models() -> None:
    text = FILE.read_text("utf-8")
    assert with_schemas(text) == text, "run `make schemas`"
    assert {name: topic["payload"] for name, topic in DOCUMENT["topics"].items()} == payloads()


def test_the_limits_are_those_of_the_domain() -> None:
    defined = DOCUMENT["definitions"]
    assert set(defined["DecidedCode"]["enum"]) == set(DECIDED_CODES)
    assert defined["Stock"]["maximum"] == product.STOCK_MAX
    assert defined["Quantity"]["maximum"] == product.QUANTITY_MAX
    assert defined["TimeMs"]["maximum"] == TIME_MS_MAX
    assert defined["PurchaseCommandValue"]["properties"]["users"]["maxItems"] == PURCHASES_PER_RECORD_MAX
    opening = defined["OpenCommandValue"]["properties"]
    assert opening["per_user_limit"]["maximum"] == product.PER_USER_LIMIT_MAX
    assert opening["name"]["maxLength"] == NAME_LENGTH_MAX
    rate_limit = defined["RateLimitValue"]["properties"]
    assert rate_limit["burst"]["maximum"] == limiters.BURST_MAX
    assert rate_limit["requests_per_second"]["maximum"] == limiters.REQUESTS_PER_SECOND_MAX
    assert set(defined["Algorithm"]["enum"]) == set(limiters.Algorithm)
    refusals = {
        refusal
        for kind in ("Open", *map(str.capitalize, CONTROL_FIELDS))
        for refusal in defined[f"{kind}DecisionValue"]["properties"]["refusal"]["enum"]
    }
    assert refusals == set(Refusal)
    assert defined["AdjustCommandValue"]["properties"]["reason"]["maxLength"] == REASON_LENGTH_MAX
    assert defined["AdjustCommandValue"]["properties"]["by"]["maxLength"] == BY_LENGTH_MAX


@given(st.text(max_size=70))
def test_the_schemas_of_ids_and_receipts_match_the_domain(text: str) -> None:
    for name, in_domain in (("Id", canonical_id), ("Receipt", parse_receipt)):
        fits = Draft202012Validator(DOCUMENT["definitions"][name]).is_valid(text)
        # Python's `$` also matches before a final newline; that of ECMAScript, the standard, does not.
        assert fits == (in_domain(text) is not None) or text.endswith("\n")


@st.composite
def purchases(draw: st.DrawFn) -> Purchases:
    users = draw(st.lists(ids, min_size=1, max_size=20))
    quantities = draw(st.none() | st.lists(st.integers(-5, 5), min_size=len(users), max_size=len(users)))
    chosen = draw(st.dictionaries(st.integers(0, len(users) - 1), keys, max_size=3))
    return Purchases(users, quantities, chosen)


@st.composite
def openings(draw: st.DrawFn) -> Opening:
    start_ms, end_ms = sorted((draw(moments), draw(moments)))
    rule = st.builds(
        limiters.Rule,
        st.sampled_from(limiters.Algorithm),
        st.integers(1, limiters.REQUESTS_PER_SECOND_MAX),
        st.integers(1, limiters.BURST_MAX),
    )
    return Opening(
        name=draw(st.text(st.characters(codec="utf-8"), max_size=NAME_LENGTH_MAX)),
        price=draw(prices),
        stock=draw(st.integers(0, product.STOCK_MAX)),
        start_ms=start_ms,
        end_ms=end_ms,
        state=draw(st.sampled_from([SaleState.ACTIVE, SaleState.PAUSED])),
        per_user_limit=draw(st.integers(1, product.PER_USER_LIMIT_MAX)),
        rate_limit=draw(st.none() | rule),
    )


@given(ids, purchases(), openings())
def test_commands_match_their_schema(product_id: str, wanted: Purchases, opening: Opening) -> None:
    quantities = None if wanted.quantities is None else list(wanted.quantities)
    for value in (
        encode_purchases(product_id, list(wanted.users), quantities, wanted.keys),
        encode_open(OpenCommand(product_id, opening)),
        encode_close(product_id),
    ):
        decode_command(product_id.encode(), value)
        validate(TOPICS.requests, value)


RULE = limiters.Rule(limiters.Algorithm.TOKEN_BUCKET, 10, 10)
COMMANDS = [
    encode_purchases("1001", ["a", "b"], [1, 2], {0: "k"}),
    encode_open(OpenCommand("1001", Opening("n", "9.90", 5, 0, 9, SaleState.ACTIVE, 1, RULE))),
    encode_close("1001"),
]


def corrupted(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Copies of this document, each with one fault in one field."""
    for name in document:
        yield {**document, name: None}
        yield {**document, name: ["\u00e9"]}
        yield {**document, name: {"\u00e9": "\u00e9"}}
        yield {**document, name: "\u00e9" * 300}
    yield {**document, "color": 1}


@pytest.mark.parametrize("value", COMMANDS, ids=["purchase", "open", "close"])
def test_a_malformed_command_does_not_match_its_schema(value: bytes) -> None:
    for invalid in corrupted(orjson.loads(value)):
        with pytest.raises(MalformedCommand):
            decode_command(b"1001", orjson.dumps(invalid))
        with pytest.raises(ValidationError):
            validate(TOPICS.requests, orjson.dumps(invalid))


def result(kind: str, **fields: Any) -> dict[str, Any]:
    return {"source_offset": 12, "type": kind, "time_ms": 1_700_000_000_000, **fields}


PURCHASE, OPEN, CLOSE = (orjson.loads(value) for value in COMMANDS)
RESULTS = [
    result("purchase", codes=[1, -2], stock=0, sold=5, price="9.90", command=PURCHASE),
    result("purchase", codes=[-1, -7], command=PURCHASE),
    result(
        "purchase",
        codes=[-3, -9],
        held={"0": "0-12-5"},
        stock=1,
        sold=4,
        price="9.90",
        limiter="1000:0:1700000000000",
        retry_after_ms=100,
        command=PURCHASE,
    ),
    result("open", command=OPEN),
    result("open", refusal="already_open", command=OPEN),
    result("close", command=CLOSE),
    result("close", refusal="never_opened", command=CLOSE),
    result("malformed", error="users: not all ids"),
]


@pytest.mark.parametrize("document", RESULTS, ids=lambda document: document["type"])
def test_decisions_match_their_schema(document: dict[str, Any]) -> None:
    value = orjson.dumps(document)
    decode_decision(value)
    assert peek_source_offset(value) == 12
    validate(TOPICS.results, value)
    for name in document.keys() - {"held", "refusal", "limiter", "stock", "sold", "price", "retry_after_ms"}:
        with pytest.raises(ValidationError):
            validate(TOPICS.results, orjson.dumps({key: document[key] for key in document.keys() - {name}}))


@pytest.mark.parametrize("name", ["stock", "sold", "price", "limiter"])
def test_fields_of_a_decision_that_belong_together_are_required_together(name: str) -> None:
    lacking = {key: content for key, content in RESULTS[2].items() if key != name}
    with pytest.raises(ValidationError):
        validate(TOPICS.results, orjson.dumps(lacking))


@given(ids, st.lists(st.tuples(ids, st.integers(1, 1_000_000)), min_size=1, max_size=20), prices, moments)
def test_orders_match_their_schema(
    product_id: str, buyers: list[tuple[str, int]], price: str, time_ms: int
) -> None:
    users, quantities = [user for user, _ in buyers], [quantity for _, quantity in buyers]
    codes = [Code.SUCCESS.value] * len(users)
    decided = PurchaseDecision(
        source_offset=7,
        time_ms=time_ms,
        product_id=product_id,
        codes=codes,
        held={},
        stock=0,
        sold=sum(quantities),
        price=price,
        limiter=None,
        retry_after_ms=None,
        purchases=Purchases(users, quantities),
    )
    orders = list(created_orders(decided, 3))
    assert len(orders) == len(users)
    for index, order in enumerate(orders):
        validate(TOPICS.orders, order)
        assert orjson.loads(order)["order_id"] == str(Receipt(3, 7, index))
