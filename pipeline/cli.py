"""The command line. Each command imports what it needs when it runs, so `seckill --help` starts at once."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from pipeline.cli_token import token

if TYPE_CHECKING:
    from pipeline.kafka.topics import Topics
    from pipeline.settings import Settings

PROCESSES_MAX = 64


@click.group()
def main() -> None:
    """A flash sale on Kafka, Faust and Redis."""
    # aiokafka logs each attempt to connect; a command reports a failure once, at its end.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


@contextmanager
def _report_errors(exit_code: int = 1) -> Iterator[None]:
    """Reports errors that the operator can fix, without a traceback. A bad setting exits with 2."""
    from pipeline.errors import OperatorError, Unavailable

    try:
        yield
    except (OperatorError, Unavailable) as error:
        from pipeline.process.configuration import BadSettings

        reported = click.ClickException(str(error))
        reported.exit_code = 2 if isinstance(error, BadSettings) else exit_code
        raise reported from error


def _load() -> "tuple[Settings, Topics]":
    """The settings, and the topics of their profile. Raises BadSettings and BadTopics."""
    from pipeline.kafka.topics import load_topics
    from pipeline.process.configuration import load_settings

    settings = load_settings()
    return settings, load_topics(settings.kafka_profile, settings.topics_file)


main.add_command(token)


@main.command()
@click.option("--ingress", type=click.IntRange(1, PROCESSES_MAX), default=1, show_default=True)
@click.option("--workers", type=click.IntRange(1, PROCESSES_MAX), default=1, show_default=True)
def up(ingress: int, workers: int) -> None:
    """Run the whole system on this machine until Ctrl-C. It has this many ingress and decider processes."""
    with _report_errors():
        from pipeline.local.up import up as run_up
        from pipeline.process.configuration import load_settings

        run_up(load_settings(), ingress, workers, click.echo)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool) -> None:
    """List the parts of the running system. Exit code 1 if none is running."""
    with _report_errors():
        from pipeline.local.state import read_state
        from pipeline.local.status import describe, document
        from pipeline.process.configuration import load_settings

        data_dir = load_settings().data_dir
        state = read_state(data_dir)
    click.echo(document(state) if as_json else describe(state, data_dir))
    if state is None:
        raise click.exceptions.Exit(1)


@main.group()
def topics() -> None:
    """The Kafka topics of topics.yaml."""


@topics.command()
@click.option("--timeout-ms", type=click.IntRange(1, 600_000), default=30_000, show_default=True)
def create(timeout_ms: int) -> None:
    """Create missing topics and report how the others differ. Never changes or deletes a topic."""
    from pipeline.kafka.topic_admin import check_topics, create_topics

    with _report_errors():
        settings, wanted = _load()
        created = asyncio.run(create_topics(settings.kafka(), wanted, timeout_ms))
        for name in created:
            click.echo(f"created {name}")
        click.echo(f"{len(wanted.all()) - len(created)} of {len(wanted.all())} topics already existed")
        for difference in asyncio.run(check_topics(settings.kafka(), wanted, timeout_ms)):
            click.echo(f"unchanged: {difference}", err=True)
            click.echo(f"  to fix it: {difference.remedy(settings.kafka())}", err=True)


@topics.command()
@click.option("--timeout-ms", type=click.IntRange(1, 600_000), default=30_000, show_default=True)
def check(timeout_ms: int) -> None:
    """Report how the broker's topics differ from topics.yaml; exit code 1 if they do."""
    from pipeline.kafka.topic_admin import check_topics

    with _report_errors():
        settings, wanted = _load()
        differences = asyncio.run(check_topics(settings.kafka(), wanted, timeout_ms))
    for difference in differences:
        click.echo(str(difference))
        click.echo(f"  to fix it: {difference.remedy(settings.kafka())}")
    if differences:
        raise click.exceptions.Exit(1)
    click.echo(f"all {len(wanted.all())} topics at {settings.kafka()} match topics.yaml")


@main.group()
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

    with _report_errors():
        settings, topics = _load()
        feed = OrdersFeed(settings.kafka(), topics.orders.name, from_beginning=from_beginning or to_end)
        print_orders(feed, follow=not to_end, as_json=as_json)


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


@main.command()
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

    with _report_errors():
        settings, topics = _load()
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
    with _report_errors(exit_code=2), Console(stderr=True).status("audit"):
        report = asyncio.run(run_audit(settings, topics, [plan.product_id]))
    if report.clean:
        console.print(f"audit of {sum(each.examined for each in report.findings.values()):,} items:", end=" ")
        print_verdict(report, console)
    else:
        print_report(report, console)
    if not (passed and report.clean):
        raise click.exceptions.Exit(1)


@main.command()
@click.option("--product", "products", multiple=True, help="Audit only the partitions of these products.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(products: tuple[str, ...], as_json: bool) -> None:
    """Recompute every decision from the command log. Cross-check topics, Redis and orders. Safe during a sale.

    Exit code 1 on any violation, 2 if the audit cannot run.
    """
    import orjson
    from rich.console import Console

    from pipeline.audit import audit as run_audit
    from pipeline.audit.table import print_report

    with _report_errors(exit_code=2):
        settings, wanted = _load()
        with Console(stderr=True).status("audit") as spinner:
            report = asyncio.run(run_audit(settings, wanted, products or None, spinner.update))
    if as_json:
        click.echo(orjson.dumps(report.document()).decode())
    else:
        print_report(report, Console())
    if not report.clean:
        raise click.exceptions.Exit(1)


@main.command()
def rebuild() -> None:
    """Wipe the stock in Redis and replay the decision log into it. Stop the deciders first."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from pipeline.rebuild import rebuild as run_rebuild

    with _report_errors():
        settings, wanted = _load()
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
            task = bar.add_task("decisions", total=None)
            rebuilt = asyncio.run(
                run_rebuild(
                    settings,
                    wanted,
                    lambda progress: bar.update(task, completed=progress.done, total=progress.total),
                )
            )
    click.echo(
        f"{rebuilt.partitions} partitions, {rebuilt.records:,} decisions, {rebuilt.purchases:,} purchases "
        f"in {rebuilt.seconds:.2f} s"
    )


if __name__ == "__main__":
    main()
