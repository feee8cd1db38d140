"""The command line. Thin: each command imports what it needs when it runs, so `seckill` starts at once."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click

PROCESSES_MAX = 64


@click.group()
def main() -> None:
    """A flash sale on Kafka, Faust and Redis."""


@contextmanager
def _refusals(*kinds: type[Exception], exit_code: int = 1) -> Iterator[None]:
    """What the user can mend by himself is said in its own words. Exit code 1 unless told, or 2 for a setting."""
    try:
        yield
    except kinds as error:
        from pipeline.process.configuration import BadSettings

        refusal = click.ClickException(str(error))
        refusal.exit_code = 2 if isinstance(error, BadSettings) else exit_code
        raise refusal from error


@main.command()
@click.option("--ingress", type=click.IntRange(1, PROCESSES_MAX), default=1, show_default=True)
@click.option("--workers", type=click.IntRange(1, PROCESSES_MAX), default=1, show_default=True)
def up(ingress: int, workers: int) -> None:
    """Run the whole system on this machine, with so many ingress and decider processes, until Ctrl-C."""
    from pipeline.local.up import UpRefused
    from pipeline.local.up import up as run_up
    from pipeline.process.configuration import BadSettings, load_settings

    with _refusals(BadSettings, UpRefused):
        run_up(load_settings(), ingress, workers, click.echo)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(as_json: bool) -> None:
    """List the parts of the running system; exit code 1 if none runs."""
    from pipeline.local.state import read_state
    from pipeline.local.status import describe, document
    from pipeline.process.configuration import BadSettings, load_settings

    with _refusals(BadSettings):
        data_dir = load_settings().data_dir
    state = read_state(data_dir)
    click.echo(document(state) if as_json else describe(state, data_dir))
    if state is None:
        raise click.exceptions.Exit(1)


@main.group()
def topics() -> None:
    """The Kafka topics, as topics.yaml has them."""
    # aiokafka logs each attempt to connect; the command says it once, at the end.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


@topics.command()
@click.option("--timeout-ms", type=click.IntRange(1, 600_000), default=30_000, show_default=True)
def create(timeout_ms: int) -> None:
    """Create the topics that are missing, and say what differs in the others. Changes and deletes nothing."""
    from pipeline.errors import KafkaUnavailable
    from pipeline.kafka.topic_admin import TopicsRefused, check_topics, create_topics
    from pipeline.kafka.topics import BadTopics, load_topics
    from pipeline.process.configuration import BadSettings, load_settings

    with _refusals(BadSettings, BadTopics, KafkaUnavailable, TopicsRefused):
        settings = load_settings()
        wanted = load_topics(settings.kafka_profile, settings.topics_file)
        created = asyncio.run(create_topics(settings.kafka(), wanted, timeout_ms))
        for name in created:
            click.echo(f"created {name}")
        there = len(wanted.all()) - len(created)
        click.echo(f"{there} of {len(wanted.all())} topics were there already")
        for difference in asyncio.run(check_topics(settings.kafka(), wanted, timeout_ms)):
            click.echo(f"left as it is: {difference}", err=True)
            click.echo(f"  to mend it: {difference.remedy(settings.kafka())}", err=True)


@topics.command()
@click.option("--timeout-ms", type=click.IntRange(1, 600_000), default=30_000, show_default=True)
def check(timeout_ms: int) -> None:
    """Say in what the broker's topics differ from topics.yaml; exit code 1 if in anything."""
    from pipeline.errors import KafkaUnavailable
    from pipeline.kafka.topic_admin import TopicsRefused, check_topics
    from pipeline.kafka.topics import BadTopics, load_topics
    from pipeline.process.configuration import BadSettings, load_settings

    with _refusals(BadSettings, BadTopics, KafkaUnavailable, TopicsRefused):
        settings = load_settings()
        wanted = load_topics(settings.kafka_profile, settings.topics_file)
        differences = asyncio.run(check_topics(settings.kafka(), wanted, timeout_ms))
    for difference in differences:
        click.echo(str(difference))
        click.echo(f"  to mend it: {difference.remedy(settings.kafka())}")
    if differences:
        raise click.exceptions.Exit(1)
    click.echo(f"all {len(wanted.all())} topics at {settings.kafka()} are as topics.yaml says")


@main.group()
def orders() -> None:
    """The orders, as a consumer of their topic sees them."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


@orders.command()
@click.option("--from-beginning", is_flag=True, help="First all that the topic holds.")
@click.option("--to-end", is_flag=True, help="Only all that the topic holds.")
@click.option("--json", "as_json", is_flag=True, help="The records as they are, one JSON object a line.")
def follow(from_beginning: bool, to_end: bool, as_json: bool) -> None:
    """Print one line for each order that comes, until Ctrl-C."""
    from pipeline.errors import KafkaUnavailable
    from pipeline.kafka.topics import BadTopics, load_topics
    from pipeline.orders.feed import OrdersFeed, print_orders
    from pipeline.process.configuration import BadSettings, load_settings

    with _refusals(BadSettings, BadTopics, KafkaUnavailable):
        settings = load_settings()
        topic = load_topics(settings.kafka_profile, settings.topics_file).orders.name
        feed = OrdersFeed(settings.kafka(), topic, from_beginning=from_beginning or to_end)
        print_orders(feed, follow=not to_end, as_json=as_json)


class _Share(click.ParamType):
    """A share of the whole: "5%"."""

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
@click.option("--product", "product_id", help="The product's id, which must be new.  [default: one made up]")
@click.option("--connections", type=click.IntRange(1, 1_024), default=64, show_default=True)
@click.option("--repeats", type=_Share(), default="5%", show_default=True, help="Buyers who ask once more.")
@click.option(
    "--bad", type=_Share(), default="1%", show_default=True, help="Bad requests, each to get its 4xx."
)
def demo(
    buyers: int, stock: int, product_id: str | None, connections: int, repeats: float, bad: float
) -> None:
    """Sell a product to a crowd over HTTP, check all that comes of it, and let the audit recompute it.

    Exit code 1 if anything disagrees, 2 if the audit could examine nothing.
    """
    from rich.console import Console

    from pipeline.audit import CannotAudit
    from pipeline.audit import audit as run_audit
    from pipeline.audit.table import print_report, print_verdict
    from pipeline.demo.connection import Listener
    from pipeline.demo.sale import DemoRefused, Plan, fresh_product_id
    from pipeline.demo.show import run_demo
    from pipeline.errors import KafkaUnavailable
    from pipeline.kafka.topics import BadTopics, load_topics
    from pipeline.orders.feed import OrdersFeed
    from pipeline.process.configuration import BadSettings, load_settings

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with _refusals(BadSettings, BadTopics, DemoRefused, KafkaUnavailable):
        settings = load_settings()
        topics = load_topics(settings.kafka_profile, settings.topics_file)
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
        agrees = run_demo(plan, feed, console)
    with _refusals(CannotAudit, exit_code=2), Console(stderr=True).status("audit"):
        report = asyncio.run(run_audit(settings, topics, [plan.product_id]))
    if report.clean:
        console.print(
            f"audit of {sum(each.examined for each in report.findings.values()):,} things:", end=" "
        )
        print_verdict(report, console)
    else:
        print_report(report, console)
    if not (agrees and report.clean):
        raise click.exceptions.Exit(1)


@main.command()
@click.option("--product", "products", multiple=True, help="Only the partitions of these products.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def audit(products: tuple[str, ...], as_json: bool) -> None:
    """Recompute every decision from the logs, and compare logs and Redis with that. Runs beside a live sale.

    Exit code 1 on any violation, 2 if nothing could be examined.
    """
    import orjson
    from rich.console import Console

    from pipeline.audit import CannotAudit
    from pipeline.audit import audit as run_audit
    from pipeline.audit.table import print_report
    from pipeline.kafka.topics import BadTopics, load_topics
    from pipeline.process.configuration import BadSettings, load_settings

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with _refusals(BadSettings, BadTopics, CannotAudit, exit_code=2):
        settings = load_settings()
        wanted = load_topics(settings.kafka_profile, settings.topics_file)
        with Console(stderr=True).status("audit") as shown:
            report = asyncio.run(run_audit(settings, wanted, products or None, shown.update))
    if as_json:
        click.echo(orjson.dumps(report.document()).decode())
    else:
        print_report(report, Console())
    if not report.clean:
        raise click.exceptions.Exit(1)


@main.command()
def rebuild() -> None:
    """Wipe the stock in Redis and make it again from the decision log. Not under a running decider."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from pipeline.kafka.topics import BadTopics, load_topics
    from pipeline.process.configuration import BadSettings, load_settings
    from pipeline.rebuild import CannotRebuild
    from pipeline.rebuild import rebuild as run_rebuild

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with _refusals(BadSettings, BadTopics, CannotRebuild):
        settings = load_settings()
        wanted = load_topics(settings.kafka_profile, settings.topics_file)
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
            task = bar.add_task("decisions", total=None)
            rebuilt = asyncio.run(
                run_rebuild(settings, wanted, lambda at: bar.update(task, completed=at.done, total=at.total))
            )
    click.echo(
        f"{rebuilt.partitions} partitions, {rebuilt.records:,} decisions, {rebuilt.purchases:,} purchases "
        f"in {rebuilt.seconds:.2f} s"
    )


if __name__ == "__main__":
    main()
