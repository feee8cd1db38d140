"""`seckill demo`: a crowd that buys, and what it found."""

import asyncio

import click

from pipeline.cli.invocation import load_system, report_errors


class _Share(click.ParamType):
    """A percentage such as "5%", as a fraction of 1."""

    name = "PERCENT%"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        digits, sign, rest = value.partition("%")
        try:
            share = float(digits) / 100
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1 or not sign or rest:
            self.fail(f"{value!r} is not a percentage from 0% to 100%", param, ctx)
        return share


@click.command()
@click.option("--buyers", type=click.IntRange(1, 1_000_000), default=20_000, show_default=True)
@click.option("--stock", type=click.IntRange(1, 1_000_000_000), default=1_000, show_default=True)
@click.option("--product", "product_id", help="The id of a new product.  [default: a random id]")
@click.option("--connections", type=click.IntRange(1, 1_024), default=64, show_default=True)
@click.option(
    "--repeats", type=_Share(), default="5%", show_default=True, help="Extra purchases by random buyers."
)
@click.option(
    "--bad", type=_Share(), default="1%", show_default=True, help="Bad requests; each must get its 4xx."
)
def demo(
    buyers: int, stock: int, product_id: str | None, connections: int, repeats: float, bad: float
) -> None:
    """Sell a product to a crowd over HTTP, check the outcome and audit it.

    Exit code 1 if a check fails, 2 if the audit cannot run.
    """
    from rich.console import Console

    from pipeline.audit import audit as run_audit
    from pipeline.audit.table import print_report, print_verdict
    from pipeline.demo.connection import Listener
    from pipeline.demo.observations import Plan
    from pipeline.demo.sale import fresh_product_id
    from pipeline.demo.show import run_demo
    from pipeline.orders.feed import OrdersFeed

    with report_errors():
        settings, topics = load_system()
        plan = Plan(
            product_id or fresh_product_id(),
            stock=stock,
            buyers=buyers,
            repeats=round(buyers * repeats),
            bad=round(buyers * bad),
            connections=connections,
            public=Listener.at(settings.public_host, settings.public_port),
            administration=Listener.at(settings.admin_host, settings.admin_port),
        )
        feed = OrdersFeed(settings.kafka(), topics.orders.name, from_beginning=False)
        console = Console(highlight=False)
        passed = run_demo(plan, feed, console)
    with report_errors(exit_code=2), Console(stderr=True).status("audit"):
        report = asyncio.run(run_audit(settings, topics, [plan.product_id]))
    if report.clean:
        console.print(f"audit of {sum(each.examined for each in report.findings.values()):,} items:", end=" ")
        print_verdict(report, console)
    else:
        print_report(report, console)
    if not (passed and report.clean):
        raise click.exceptions.Exit(1)
