"""The requests of the demo's crowd, in the order in which they are sent."""

import random
from collections.abc import Callable
from typing import NamedTuple

import orjson

from pipeline.demo.calls import PURCHASE_PATH, purchase
from pipeline.demo.connection import Listener

TOO_LARGE_BYTES = 20_000
"""Above the default of SECKILL_BODY_BYTES_MAX."""
NESTING = 64


class Attempt(NamedTuple):
    """A request and its expected HTTP status. `user_id` is None for a bad request."""

    request: bytes
    user_id: str | None
    status: int
    name: str


def make_crowd(
    listener: Listener, product_id: str, *, buyers: int, repeats: int, bad: int, seed: int
) -> list[Attempt]:
    """One purchase by each of `buyers` users, `repeats` more by random ones of them, and `bad` requests; shuffled."""
    rng = random.Random(seed)
    users = [f"u{number:07d}" for number in range(buyers)]
    # Each purchase has its own key: a retry buys once, but a buyer's second purchase is a new one.
    crowd = [
        Attempt(purchase(listener, product_id, user, key=f"purchase-{number}"), user, 202, "a purchase")
        for number, user in enumerate(users + rng.choices(users, k=repeats))
    ]
    crowd += [_BAD[number % len(_BAD)](listener, product_id) for number in range(bad)]
    rng.shuffle(crowd)
    return crowd


def _bad(name: str, status: int, **changed: object) -> Callable[[Listener, str], Attempt]:
    """A purchase with invalid fields."""

    def attempt(listener: Listener, product_id: str) -> Attempt:
        body = orjson.dumps({"product_id": product_id, "user_id": "bad", **changed})
        return Attempt(listener.post(PURCHASE_PATH, body), None, status, name)

    return attempt


def _broken_json(listener: Listener, product_id: str) -> Attempt:
    body = b'{"product_id":"%b","user_id":' % product_id.encode()
    return Attempt(listener.post(PURCHASE_PATH, body), None, 400, "broken JSON")


def _wrong_content_type(listener: Listener, product_id: str) -> Attempt:
    body = orjson.dumps({"product_id": product_id, "user_id": "bad"})
    return Attempt(listener.post(PURCHASE_PATH, body, "text/plain"), None, 415, "a wrong content type")


def _wrong_method(listener: Listener, _: str) -> Attempt:
    return Attempt(listener.get(PURCHASE_PATH), None, 405, "a wrong method")


def _deep_nesting(listener: Listener, _: str) -> Attempt:
    body = b'{"a":' * NESTING + b"1" + b"}" * NESTING
    return Attempt(listener.post(PURCHASE_PATH, body), None, 400, "deep nesting")


_BAD: tuple[Callable[[Listener, str], Attempt], ...] = (
    _broken_json,
    _bad("a quantity of 0", 400, quantity=0),
    _wrong_content_type,
    _bad("a quantity that is text", 400, quantity="1"),
    _bad("a malformed user id", 400, user_id="no spaces"),
    _bad("no user id", 400, user_id=None),
    _bad("a body that is too large", 413, note="x" * TOO_LARGE_BYTES),
    _wrong_method,
    _deep_nesting,
)
