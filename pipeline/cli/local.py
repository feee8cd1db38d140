"""`seckill up` and `seckill status`: the whole system on this machine."""

import click

from pipeline.cli.invocation import report_errors

PROCESSES_MAX = 64


@click.command()
@click.option("--ingress", type=click.IntRange(1, PROCESSES_MAX), default=1, show_default=True)
@click.option("--workers", type=click.IntRange(1, PROCESSES_MAX), default=1, show_default=True)
def up(ingress: int, workers: int) -> None:
    """Run the whole system on this machine until Ctrl-C. It has this many ingress and decider processes."""
    with report_errors():
        from pipeline.local.up import up as run_up
        from pipeline.process.configuration import load_settings

        run_up(load_settings(), ingress, workers, click.echo)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool) -> None:
    """List the parts of the running system. Exit code 1 if none is running.

    SETTINGS is the version of the live settings in force in the part, the offset of their newest change; -1 is none.
    """
    with report_errors():
        from pipeline.local.state import read_state
        from pipeline.local.status import describe, document, settings_versions
        from pipeline.process.configuration import load_settings

        data_dir = load_settings().data_dir
        state = read_state(data_dir)
        versions = settings_versions(state)
    click.echo(document(state, versions) if as_json else describe(state, versions, data_dir))
    if state is None:
        raise click.exceptions.Exit(1)
