"""`seckill topics`: creates and checks the Kafka topics."""

import asyncio

import click

from pipeline.cli.invocation import load_system, report_errors


@click.group()
def topics() -> None:
    """The Kafka topics of topics.yaml."""


@topics.command()
@click.option("--timeout-ms", type=click.IntRange(1, 600_000), default=30_000, show_default=True)
def create(timeout_ms: int) -> None:
    """Create missing topics and report how the others differ. Never changes or deletes a topic."""
    from pipeline.kafka.topic_admin import check_topics, create_topics

    with report_errors():
        settings, wanted = load_system()
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

    with report_errors():
        settings, wanted = load_system()
        differences = asyncio.run(check_topics(settings.kafka(), wanted, timeout_ms))
    for difference in differences:
        click.echo(str(difference))
        click.echo(f"  to fix it: {difference.remedy(settings.kafka())}")
    if differences:
        raise click.exceptions.Exit(1)
    click.echo(f"all {len(wanted.all())} topics at {settings.kafka()} match topics.yaml")
