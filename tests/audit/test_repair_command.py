"""`seckill repair` from the command line: what it prints, and its exit codes."""

import json
from collections.abc import Mapping, Sequence

import pytest

from audit.redis_damages import buyers_of, stock_of
from audit.sale import Sale
from audit.small_sale import NEVER, PARTITION, PLAIN
from audit.test_rebuild import seckill


async def test_the_command_compares_and_mends(sold: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    result = await seckill(sold, monkeypatch, "repair", "--product", PLAIN)
    assert (result.exit_code, result.stdout) == (
        0,
        f"product {PLAIN}, partition 1, up to command 39: 0 differences\n",
    )
    sold.redis.hset(stock_of(PLAIN), "stock", 99)
    line = f"seckill:{{p1}}:product:{PLAIN} stock: '99' instead of '0'"
    summary = f"product {PLAIN}, partition 1, up to command 39: 1 difference"
    result = await seckill(sold, monkeypatch, "repair", "--product", PLAIN)
    unchanged = "; nothing was changed, --apply mends Redis"
    assert (result.exit_code, result.stdout) == (1, f"{line}\n{summary}{unchanged}\n")
    result = await seckill(sold, monkeypatch, "repair", "--product", PLAIN, "--apply")
    assert (result.exit_code, result.stdout) == (0, f"{line}\n{summary}, mended\n")
    result = await seckill(sold, monkeypatch, "repair", "--product", PLAIN, "--apply")
    assert result.exit_code == 0


async def test_the_command_prints_json(sold: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    sold.redis.hdel(buyers_of(PLAIN), "b")
    result = await seckill(sold, monkeypatch, "repair", "--product", PLAIN, "--json")
    assert result.exit_code == 1
    difference = {"key": buyers_of(PLAIN), "field": "b", "found": None, "expected": "1:1:2"}
    expected = {"product_id": PLAIN, "partition": PARTITION, "offset": 39, "notes": []}
    assert json.loads(result.stdout) == {**expected, "differences": [difference], "mended": False}
    result = await seckill(sold, monkeypatch, "repair", "--product", PLAIN, "--json", "--apply")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["mended"] is True


@pytest.mark.parametrize(
    ("arguments", "settings", "error"),
    [
        (("--product", NEVER), {}, "was never opened"),
        (("--product", PLAIN), {"SECKILL_REDIS_URL": "redis://127.0.0.1:1/0"}, "Error: Redis"),
        (("--product", "a b"), {}, "'a b' is not a positive integer up to"),
        ((), {}, "Missing option '--product'"),
    ],
)
async def test_the_command_cannot_run(
    sold: Sale,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    settings: Mapping[str, str],
    error: str,
) -> None:
    result = await seckill(sold, monkeypatch, "repair", *arguments, **settings)
    assert (result.exit_code, result.stdout) == (2, "")
    assert error in result.stderr
