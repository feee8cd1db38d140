"""What unparsed decisions show of a product: whether it is on sale, and whether it was opened."""

import pytest
from records import bought, closed, malformed, opened

from pipeline.ingress import on_sale as on_sale_module
from pipeline.ingress.on_sale import OnSale


def test_a_product_is_on_sale_while_its_decisions_show_stock() -> None:
    on_sale = OnSale()

    def after(record: bytes, key: bytes | None = b"p") -> bool:
        on_sale.observe(key, record)
        return "p" in on_sale

    assert not after(opened(0, "p", 5)), "it may not have begun"
    assert after(bought(1, "p", [1, -2], stock=4, sold=1))
    assert after(bought(2, "p", [-3], held={"0": "0-1-0"}, stock=4, sold=1))
    assert after(bought(3, "p", [-4], stock=4, sold=1)), "purchases of a paused sale go into the log"
    assert not after(bought(4, "p", [1], stock=0, sold=5))
    assert after(bought(5, "p", [1], stock=10, sold=5)), "stock came back"
    assert not after(bought(6, "p", [-3, 1], held={"0": "0-1-0"}, stock=0, sold=15))
    assert after(bought(7, "p", [1], stock=1, sold=15))
    assert not after(closed(8, "p"))
    assert after(bought(9, "p", [1], stock=1, sold=15))
    assert not after(bought(10, "p", [-5], stock=1, sold=15))
    assert after(bought(11, "p", [1], stock=1, sold=15))
    assert not after(bought(12, "p", [-6], stock=1, sold=15))
    assert after(bought(13, "p", [1], stock=1, sold=15))
    assert after(malformed(14), key=None)
    assert after(bought(15, "q", [-1]), key=b"q")


def test_a_product_is_known_as_opened_from_the_first_record_that_shows_it_and_for_good() -> None:
    def known(record: bytes, key: bytes | None = b"p", *, older: bool = False) -> bool:
        on_sale = OnSale()
        (on_sale.observe_older if older else on_sale.observe)(key, record)
        assert not (older and "p" in on_sale), "an old record shows nothing about stock"
        return on_sale.is_opened("p")

    for older in (False, True):
        assert known(opened(0, "p", 0), older=older)
        assert known(opened(0, "p", 5, refusal="already_open"), older=older)
        assert known(bought(1, "p", [1], stock=0, sold=5), older=older)
        assert known(bought(1, "p", [1, -3], held={"1": "0-1-0"}, stock=4, sold=1), older=older)
        assert known(bought(1, "p", [-6], stock=1, sold=5), older=older)
        assert known(closed(2, "p"), older=older)
        assert known(closed(2, "p", refusal="closed"), older=older)
        assert not known(closed(2, "p", refusal="never_opened"), older=older)
        assert not known(bought(1, "p", [-1, -1]), older=older)
        assert not known(bought(1, ',"stock":7', [-1]), older=older)
        assert not known(malformed(1), older=older)
        assert not known(opened(0, "p", 5), key=None, older=older)
    on_sale = OnSale()
    on_sale.observe(b"p", bought(1, "p", [1], stock=1, sold=5))
    on_sale.observe(b"p", closed(2, "p"))
    on_sale.observe(b"p", bought(3, "p", [-6]))
    assert on_sale.is_opened("p")


def test_only_the_latest_opened_products_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_sale_module, "OPENED_MAX", 3)
    on_sale = OnSale()
    # The tail of the log is loaded backwards.
    for product in ("live", "b", "c", "d"):
        on_sale.observe_older(product.encode(), opened(0, product, 5))
    assert [each for each in ("live", "b", "c", "d") if on_sale.is_opened(each)] == ["live", "b", "c"]
    on_sale.observe(b"live", bought(9, "live", [1], stock=1, sold=5))
    on_sale.observe(b"e", opened(10, "e", 5))
    on_sale.observe(b"f", opened(11, "f", 5))
    assert [each for each in ("live", "b", "c", "e", "f") if on_sale.is_opened(each)] == ["live", "e", "f"]


def test_the_command_in_a_decision_cannot_forge_its_fields() -> None:
    on_sale = OnSale()
    forged = ',"stock":7,"sold":1,"codes":[1]'
    on_sale.observe(b"p", opened(0, forged, 5))
    on_sale.observe(b"p", bought(1, forged, [1], stock=0, sold=1))
    on_sale.observe(b"p", bought(2, forged, [-1]))
    on_sale.observe(
        b"p", b'{"source_offset":3,"type":"malformed","time_ms":1,"error":"x","value":"[1],\\"stock\\":7,"}'
    )
    assert len(on_sale) == 0


def test_the_memory_is_bounded_and_unopened_products_take_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_sale_module, "ON_SALE_MAX", 3)
    monkeypatch.setattr(on_sale_module, "OPENED_MAX", 4)
    on_sale = OnSale()
    for number in range(5):
        on_sale.observe(f"p{number}".encode(), bought(number, "p", [1], stock=9, sold=1))
        on_sale.observe(f"unknown{number}".encode(), bought(number, "p", [-1]))
    assert [f"p{number}" in on_sale for number in range(5)] == [False, False, True, True, True]
    assert len(on_sale) == 3
    assert [on_sale.is_opened(f"p{number}") for number in range(5)] == [False, True, True, True, True]
    assert not any(on_sale.is_opened(f"unknown{number}") for number in range(5))
