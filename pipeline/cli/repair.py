"""`seckill repair`: compares one product in Redis with the decision log, and mends it."""

import asyncio

import click

from pipeline.cli.invocation import load_system, report_errors


def _product(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    from pipeline.domain.ids import ID, ID_FORM

    if not ID.fullmatch(text):
        raise click.BadParameter(f"{text!r} is not {ID_FORM}")
    return text


@click.command()
@click.option("--product", "product_id", required=True, callback=_product, help="The product's id.")
@click.option("--apply", is_flag=True, help="Mend Redis; without it, only print what differs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def repair(product_id: str, apply: bool, as_json: bool) -> None:
    """Compare one product in Redis with the decision log, and mend Redis from it. Safe during a sale.

    Without --apply, exit code 1 if anything differs. Exit code 2 if it cannot run, or cannot mend everything.
    """
    import orjson
    from rich.console import Console

    from pipeline.repair import repair as run_repair

    with report_errors(exit_code=2):
        settings, topics = load_system()
        with Console(stderr=True).status("repair"):
            report = asyncio.run(run_repair(settings, topics, product_id, apply=apply))
    if as_json:
        click.echo(orjson.dumps(report.document()).decode())
    else:
        for line in (*report.differences, *report.notes):
            click.echo(str(line))
        count = len(report.differences)
        click.echo(
            f"product {product_id}, partition {report.partition}, up to command {report.offset}: "
            f"{count:,} difference{'' if count == 1 else 's'}{', mended' if report.is_mended else ''}"
        )
    if report.differences and not report.is_mended:
        raise click.exceptions.Exit(1)
