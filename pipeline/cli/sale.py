"""`seckill sale`: the commands of a live sale. They go through the administration listener of an ingress."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.cli.invocation import operator_name, print_json, report_errors

if TYPE_CHECKING:
    from pipeline.operator_client import OperatorClient

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


@click.group()
def sale() -> None:
    """Open products, and control them while they sell.

    Each command takes effect at one offset of the product's partition: purchases before it are judged by the old
    state, purchases after it by the new. Repeated with the same --key, a command is applied once.
    """


def _options(*options: Callable[[CommandT], CommandT]) -> Callable[[CommandT], CommandT]:
    def add(command: CommandT) -> CommandT:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
_noted = _options(
    click.option(
        "--by", default=operator_name, help="Who you are, for the log.  [default: the system's user]"
    ),
    click.option("--key", help="Idempotency key.  [default: a random one]"),
    _json,
)
_reason = click.option("--reason", help="Why, for the log.")
_product = click.argument("product_id", metavar="PRODUCT")
_rates = _options(
    click.option("--rate-limit", metavar="N", help="Purchases per second, or `none` for no limit."),
    click.option("--burst", type=int, help="For a token bucket.  [default: the rate limit]"),
    click.option(
        "--algorithm",
        type=click.Choice(["token_bucket", "sliding_window", "fixed_window"]),
        help="[default: token_bucket]",
    ),
)


@sale.command(name="open")
@_product
@click.option("--name", required=True)
@click.option("--price", required=True, help="Exact, with up to 4 decimals.")
@click.option("--stock", type=int, required=True)
@click.option("--start", required=True, help="RFC 3339, such as 2026-11-11T20:00:00Z.")
@click.option("--end", required=True)
@click.option("--paused", is_flag=True, help="Sell nothing before `seckill sale resume`.")
@click.option("--per-user-limit", type=int, default=1, show_default=True, help="In units.")
@_rates
@_reason
@_noted
def open_sale(
    product_id: str,
    name: str,
    price: str,
    stock: int,
    start: str,
    end: str,
    paused: bool,
    per_user_limit: int,
    rate_limit: str | None,
    burst: int | None,
    algorithm: str | None,
    **noted: Any,
) -> None:
    """Open a product."""
    fields = {
        "product_name": name,
        "price": price,
        "stock": stock,
        "start_time": start,
        "end_time": end,
        "status": "paused" if paused else "active",
        "per_user_limit": per_user_limit,
    }
    state = ", paused until `seckill sale resume`" if paused else ""
    _send("prewarm", product_id, fields | _rate_limit(rate_limit, burst, algorithm), noted, state)


@sale.command()
@click.argument("product_id", metavar="[PRODUCT]", required=False)
@_json
def show(product_id: str | None, as_json: bool) -> None:
    """Print the figures of one product, or of all products."""

    async def read(client: "OperatorClient") -> dict[str, Any] | list[dict[str, Any]]:
        return await (client.products() if product_id is None else client.product(product_id))

    found = _ask(read)
    if as_json:
        print_json(found)
        return
    products = found if isinstance(found, list) else [found]
    click.echo(_ROW.format("PRODUCT", "STATE", "LEFT", "SOLD", "BUYERS", "QUEUED", "WINDOW"))
    for each in products:
        terms = each["activity_info"]
        click.echo(
            _ROW.format(
                *(
                    each["product_id"],
                    terms["status"],
                    each["current_stock"],
                    each["sold"],
                    each["user_count"],
                ),
                *(each["queued"], f"{terms['start_time']} to {terms['end_time']}"),
            )
        )


_ROW = "{:<20} {:<8} {:>10} {:>10} {:>10} {:>8}  {}"


@sale.command(context_settings={"ignore_unknown_options": True})
@_product
@click.argument("change", type=int)
@click.option("--reason", required=True, help="Why, for the log.")
@_noted
def adjust(product_id: str, change: int, reason: str, **noted: Any) -> None:
    """Add CHANGE units to the stock, or take them away: 50 or -50. Never below 0."""
    _send("adjust", product_id, {"change": change}, noted | {"reason": reason})


@sale.command()
@_product
@_reason
@_noted
def pause(product_id: str, **noted: Any) -> None:
    """Pause the sale: purchases get -4."""
    _send("pause", product_id, {}, noted)


@sale.command()
@_product
@_reason
@_noted
def resume(product_id: str, **noted: Any) -> None:
    """Continue a paused sale."""
    _send("resume", product_id, {}, noted)


@sale.command()
@_product
@click.option("--start", help="RFC 3339, such as 2026-11-11T20:00:00Z.")
@click.option("--end")
@_reason
@_noted
def extend(product_id: str, start: str | None, end: str | None, **noted: Any) -> None:
    """Move the start of the sale or its end, earlier or later."""
    fields = {"start_time": start, "end_time": end}
    _send("extend", product_id, {name: time for name, time in fields.items() if time is not None}, noted)


@sale.command()
@_product
@click.option("--per-user-limit", type=int, help="In units.")
@_rates
@_reason
@_noted
def limits(
    product_id: str,
    per_user_limit: int | None,
    rate_limit: str | None,
    burst: int | None,
    algorithm: str | None,
    **noted: Any,
) -> None:
    """Change the limit per user, the rate limit, or both."""
    fields = {} if per_user_limit is None else {"per_user_limit": per_user_limit}
    _send("limits", product_id, fields | _rate_limit(rate_limit, burst, algorithm), noted)


@sale.command()
@_product
@_reason
@_noted
def close(product_id: str, **noted: Any) -> None:
    """End the sale for good: purchases get -6."""
    _send("close", product_id, {}, noted)


@sale.command()
@_product
@_reason
@_noted
def cleanup(product_id: str, **noted: Any) -> None:
    """Free the Redis keys of a closed product. The logs stay, but even a winner's repeat gets -6 from then on."""
    _send("cleanup", product_id, {}, noted)


def _rate_limit(rate_limit: str | None, burst: int | None, algorithm: str | None) -> dict[str, Any]:
    """The field of the body. Raises UsageError."""
    if rate_limit is None or rate_limit == "none":
        if burst is not None or algorithm is not None:
            raise click.UsageError("--burst and --algorithm need --rate-limit N")
        return {} if rate_limit is None else {"rate_limit": None}
    if not (rate_limit.isascii() and rate_limit.isdigit()):
        raise click.UsageError(f"--rate-limit: {rate_limit!r} is neither a whole number nor `none`")
    fields = {"requests_per_second": int(rate_limit), "burst": burst, "algorithm": algorithm}
    return {"rate_limit": {name: value for name, value in fields.items() if value is not None}}


def _send(
    call: str, product_id: str, fields: dict[str, Any], noted: dict[str, Any], state_after: str = ""
) -> None:
    """Send the command, and print one line about its decision."""
    as_json, key = noted.pop("as_json"), noted.pop("key")
    body = {"product_id": product_id, **fields, **{name: text for name, text in noted.items() if text}}
    answer = _ask(lambda client: client.command(call, body, key))
    if as_json:
        print_json(answer)
        return
    figures = ", ".join(
        f"{answer[name]} {word}" for name, word in (("stock", "left"), ("sold", "sold")) if name in answer
    )
    if answer["repeated"]:
        after = f"; at that time {figures}" if figures else ""
    else:
        after = (f", {figures}" if figures else "") + state_after
    time = f", {answer['time']}" if "time" in answer else ""
    click.echo(
        f"{answer['product_id']}: {answer['message']}{after}; "
        f"partition {answer['partition']}, offset {answer['offset']}{time}"
    )


def _ask(ask: "Callable[[OperatorClient], Any]") -> Any:
    from pipeline.operator_client import OperatorClient
    from pipeline.process.configuration import load_settings

    with report_errors():
        return asyncio.run(ask(OperatorClient(load_settings())))
