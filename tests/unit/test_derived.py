"""What follows from a decision: the orders of winners, the dead letters of malformed commands."""

import orjson
import pytest
from order_world import PARTITION, PRODUCT, TOPICS, order_ids
from records import bought, closed, malformed, opened

from pipeline.followers.derived import derive
from pipeline.messages.dead_letters import dead_letter_headers
from pipeline.messages.decisions import decode_decision


def test_only_winners_have_orders() -> None:
    decision = bought(7, "p", [1, -2, 1, -3, 1], held={"3": "2-1-0", "4": "2-1-1"}, **PRODUCT)
    derived = derive(TOPICS, PARTITION, decode_decision(decision))
    assert {(each.topic, each.partition, each.key) for each in derived} == {
        (TOPICS.orders.name, PARTITION, b"p")
    }
    assert order_ids(derived) == ["2-7-0", "2-7-2"]


def test_a_malformed_command_becomes_an_unchanged_dead_letter() -> None:
    (letter,) = derive(TOPICS, 5, decode_decision(malformed(3)))
    assert letter[:4] == (TOPICS.dead_letters.name, 5 % TOPICS.dead_letters.partitions, None, [b"{}"])
    assert letter.headers == dead_letter_headers(TOPICS.requests.name, 5, 3, "key: not the product_id")


def test_a_malformed_decision_of_version_1_has_no_dead_letter() -> None:
    document = orjson.loads(malformed(3))
    del document["key"], document["value"]
    assert derive(TOPICS, PARTITION, decode_decision(orjson.dumps(document))) == []


@pytest.mark.parametrize("decision", [opened(1, "p", 3), closed(1, "p"), bought(1, "p", [-2, -9, -1])])
def test_other_decisions_have_no_derived_records(decision: bytes) -> None:
    assert derive(TOPICS, PARTITION, decode_decision(decision)) == []
