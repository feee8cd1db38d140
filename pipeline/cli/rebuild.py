"""`seckill rebuild`: fills Redis from the decision log."""

import asyncio

import click

from pipeline.cli.invocation import load_system, print_json, report_errors


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rebuild(as_json: bool) -> None:
    """Wipe the stock in Redis and replay the decision log into it. Stop the deciders first.

    Exit code 1 if it cannot run or cannot finish; the message says whether Redis was changed.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from pipeline.rebuild import rebuild as run_rebuild

    with report_errors():
        settings, wanted = load_system()
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("decisions", total=None)
            rebuilt = asyncio.run(
                run_rebuild(
                    settings,
                    wanted,
                    lambda progress: bar.update(task, completed=progress.done, total=progress.total),
                )
            )
    if as_json:
        print_json({**rebuilt._asdict(), "seconds": round(rebuilt.seconds, 3)})
        return
    click.echo(
        f"{rebuilt.partitions} partitions, {rebuilt.records:,} decisions, {rebuilt.purchases:,} purchases "
        f"in {rebuilt.seconds:.2f} s"
    )
