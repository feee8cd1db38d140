"""`seckill orders`: the orders, as any consumer of their topic sees them."""

import click

from pipeline.cli.invocation import load_system, report_errors


@click.group()
def orders() -> None:
    """The orders, as any consumer of their topic sees them."""


@orders.command()
@click.option("--from-beginning", is_flag=True, help="Start with the orders already in the topic.")
@click.option("--to-end", is_flag=True, help="Print the orders already in the topic, then exit.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print each record unchanged, one JSON object per line."
)
def follow(from_beginning: bool, to_end: bool, as_json: bool) -> None:
    """Print one line per new order until Ctrl-C."""
    from pipeline.orders.feed import OrdersFeed, print_orders

    with report_errors():
        settings, topics = load_system()
        feed = OrdersFeed(settings.kafka(), topics.orders.name, from_beginning=from_beginning or to_end)
        print_orders(feed, follow=not to_end, as_json=as_json)
