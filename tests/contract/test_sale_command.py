"""`seckill sale` from the command line, against a running ingress: what it prints, and its exit codes."""

import asyncio
import json
import re
from typing import Any

from click.testing import CliRunner, Result

from contract.serving import Decider, Service
from pipeline.cli import main
from pipeline.local.listen import free_port

OPEN = ("--name", "Watch", "--price", "199.00", "--stock", "1", "--start", "2020-01-01T00:00:00Z")
WHERE = r"; partition \d+, offset \d+, 20\d\d-\S+Z\n"


async def sale(service: Service, *arguments: str, port: int | None = None) -> Result:
    environment = {"SECKILL_ADMIN_PORT": str(port or service.settings.admin_port)}
    return await asyncio.to_thread(CliRunner().invoke, main, ["sale", *arguments], env=environment)


async def line(service: Service, *arguments: str) -> str:
    """What a successful command prints before partition, offset and time."""
    result = await sale(service, *arguments)
    assert result.exit_code == 0, result.output
    assert re.search(WHERE + "$", result.stdout), result.stdout
    return re.sub(WHERE + "$", "", result.stdout)


async def test_each_command_prints_what_it_did(service: Service, decider: Decider) -> None:
    opened = await line(service, "open", "p", *OPEN, "--end", "2090-01-01T00:00:00Z", "--paused")
    assert opened == "p: the product is open, 1 left, paused until `seckill sale resume`"
    assert await line(service, "resume", "p") == "p: the sale is active"
    await service.buy("p", "a")
    more = ("adjust", "p", "5", "--reason", "found", "--key", "box-17")
    assert await line(service, *more) == "p: the stock is adjusted, 5 left, 1 sold"
    await service.buy("p", "b")
    repeated = await line(service, *more)
    assert re.fullmatch(
        r"p: applied before, at offset \d+; nothing was changed now; at that time 5 left, 1 sold", repeated
    )
    assert (
        await line(service, "adjust", "p", "-4", "--reason", "lost")
        == "p: the stock is adjusted, 0 left, 2 sold"
    )
    assert await line(service, "extend", "p", "--end", "2091-01-01T00:00:00Z") == "p: the window is changed"
    rates = ("--rate-limit", "7", "--burst", "9")
    assert await line(service, "limits", "p", "--per-user-limit", "3", *rates) == "p: the limits are changed"
    shown = await sale(service, "show", "p", "--json")
    terms = json.loads(shown.stdout)["activity_info"]
    assert (terms["per_user_limit"], terms["rate_limit"]["burst"], terms["end_time"][:4]) == (3, 9, "2091")
    assert await line(service, "limits", "p", "--rate-limit", "none") == "p: the limits are changed"
    assert await line(service, "pause", "p") == "p: the sale is paused"
    heading, row = (await sale(service, "show")).stdout.splitlines()
    assert heading.split() == ["PRODUCT", "STATE", "LEFT", "SOLD", "BUYERS", "QUEUED", "WINDOW"]
    assert row.split()[:6] == ["p", "paused", "0", "2", "2", "0"]
    assert await line(service, "close", "p") == "p: the product is closed"
    assert await line(service, "cleanup", "p") == "p: the product is cleaned up"


async def test_the_author_is_the_user_of_the_system_unless_it_is_given(
    service: Service, decider: Decider
) -> None:
    await service.prewarm("p")
    await sale(service, "pause", "p", "--by", "ann", "--reason", "the page is wrong", "--key", "k")
    await sale(service, "resume", "p")
    pause, resume = (json.loads(value) for _, _, value in decider.commands[-2:])
    assert pause == {
        "type": "pause",
        "product_id": "p",
        "reason": "the page is wrong",
        "by": "ann",
        "key": "k",
    }
    assert resume["by"]
    assert "reason" not in resume


async def refused(service: Service, *arguments: str, status: int = 1, **more: Any) -> str:
    result = await sale(service, *arguments, **more)
    assert (result.exit_code, result.stdout) == (status, "")
    return result.stderr


async def test_a_refusal_is_one_line_and_changes_nothing(service: Service, decider: Decider) -> None:
    await service.prewarm("p", stock=3)
    assert await refused(service, "adjust", "p", "-4", "--reason", "typo") == (
        "Error: product p has less stock than the change would take away; nothing was changed\n"
    )
    assert await refused(service, "resume", "p") == "Error: product p is not paused\n"
    assert "was never opened" in await refused(service, "pause", "q")
    assert "end_time" in await refused(service, "extend", "p")
    assert "visible ASCII" in await refused(service, "pause", "p", "--key", "two words")
    await line(service, "pause", "p", "--key", "k")
    assert "belongs to another command" in await refused(service, "resume", "p", "--key", "k")
    nowhere = await refused(service, "close", "p", port=free_port())
    assert re.fullmatch(r"Error: no administration listener at 127\.0\.0\.1:\d+: .*\n", nowhere)
    assert "need --rate-limit" in await refused(service, "limits", "p", "--burst", "5", status=2)
    assert "neither a whole number" in await refused(service, "limits", "p", "--rate-limit", "x", status=2)
    assert "Missing option '--reason'" in await refused(service, "adjust", "p", "5", status=2)
    assert (await service.stats("p")).json()["current_stock"] == 3


async def test_a_command_prints_json(service: Service, decider: Decider) -> None:
    await service.prewarm("p")
    result = await sale(service, "pause", "p", "--json")
    answer = json.loads(result.stdout)
    assert (result.exit_code, answer["product_id"], answer["repeated"]) == (0, "p", False)
