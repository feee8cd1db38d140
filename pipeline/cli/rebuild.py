"""`seckill rebuild`: fills Redis from the decision log."""

import asyncio

import click

from pipeline.cli.invocation import load_system, report_errors


@click.command()
def rebuild() -> None:
    """Wipe the stock in Redis and replay the decision log into it. Stop the deciders first."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from pipeline.rebuild import rebuild as run_rebuild

    with report_errors():
        settings, wanted = load_system()
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
