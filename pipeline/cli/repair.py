"""`seckill repair`: compares one product in Redis with the decision log, and mends it."""

import asyncio
from typing import TYPE_CHECKING

import click

from pipeline.cli.invocation import load_system, print_json, report_errors

if TYPE_CHECKING:
    from pipeline.repair import RepairReport


def _product(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    from pipeline.domain.ids import ID, ID_FORM

    if not ID.fullmatch(text):
        raise click.BadParameter(f"{text!r} is not {ID_FORM}")
    return text


def _outcome(report: "RepairReport") -> str:
    if not report.differences:
        return ""
    return ", mended" if report.is_mended else "; nothing was changed, --apply mends Redis"


@click.command()
@click.option("--product", "product_id", required=True, callback=_product, help="The product's id.")
@click.option("--apply", is_flag=True, help="Mend Redis. Without it, only print what differs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def repair(product_id: str, apply: bool, as_json: bool) -> None:
    """Compare one product in Redis with the decision log, and mend Redis from it. Safe during a sale.

    Without --apply it changes nothing, and the exit code is 1 if anything differs. Exit code 2 if it cannot run, or
    cannot mend everything.
    """
    from rich.console import Console

    from pipeline.repair import repair as run_repair

    with report_errors(exit_code=2):
        settings, topics = load_system()
        with Console(stderr=True).status("repair"):
            report = asyncio.run(run_repair(settings, topics, product_id, apply=apply))
    if as_json:
        print_json(report.document())
    else:
        for line in (*report.differences, *report.notes):
            click.echo(str(line))
        count = len(report.differences)
        click.echo(
            f"product {product_id}, partition {report.partition}, up to command {report.offset}: "
            f"{count:,} difference{'' if count == 1 else 's'}{_outcome(report)}"
        )
    if report.differences and not report.is_mended:
        raise click.exceptions.Exit(1)
