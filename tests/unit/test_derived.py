"""What follows from a decision: the orders of winners, the dead letters of malformed commands."""

import orjson
import pytest
from order_world import PARTITION, PRODUCT, TOPICS, order_ids
from records import bought, closed, malformed, opened

from pipeline.followers.derived import derive
from pipeline.messages.dead_letters import dead_letter_headers
from pipeline.messages.decisions import decode_decision


def test_a_winner_has_an_order_and_nobody_else() -> None:
    decision = bought(7, "p", [1, -2, 1, -3, 1], held={"3": "2-1-0", "4": "2-1-1"}, **PRODUCT)
    derived = derive(TOPICS, PARTITION, decode_decision(decision))
    assert {(each.topic, each.partition, each.key) for each in derived} == {
        (TOPICS.orders.name, PARTITION, b"p")
    }
    assert order_ids(derived) == ["2-7-0", "2-7-2"]


def test_a_malformed_command_has_a_dead_letter_as_it_came() -> None:
    (letter,) = derive(TOPICS, 5, decode_decision(malformed(3)))
    assert letter[:4] == (TOPICS.dead_letters.name, 5 % TOPICS.dead_letters.partitions, None, [b"{}"])
    assert letter.headers == dead_letter_headers(TOPICS.requests.name, 5, 3, "key: not the product_id")


def test_the_letter_of_a_decision_of_version_1_is_its_deciders() -> None:
    document = orjson.loads(malformed(3))
    del document["key"], document["value"]
    assert derive(TOPICS, PARTITION, decode_decision(orjson.dumps(document))) == []


@pytest.mark.parametrize("decision", [opened(1, "p", 3), closed(1, "p"), bought(1, "p", [-2, -9, -1])])
def test_nothing_follows_from_anything_else(decision: bytes) -> None:
    assert derive(TOPICS, PARTITION, decode_decision(decision)) == []
