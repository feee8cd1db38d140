"""`seckill audit`: recomputes every decision."""

import asyncio

import click

from pipeline.cli.invocation import load_system, print_json, report_errors


@click.command()
@click.option("--product", "products", multiple=True, help="Audit only the partitions of these products.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(products: tuple[str, ...], as_json: bool) -> None:
    """Recompute every decision from the command log. Cross-check topics, Redis and orders. Safe during a sale.

    Exit code 1 on any violation, 2 if the audit cannot run.
    """
    from rich.console import Console

    from pipeline.audit import audit as run_audit
    from pipeline.audit.table import print_report

    with report_errors(exit_code=2):
        settings, wanted = load_system()
        with Console(stderr=True).status("audit") as spinner:
            report = asyncio.run(run_audit(settings, wanted, products or None, spinner.update))
    if as_json:
        print_json(report.document())
    else:
        print_report(report, Console())
    if not report.clean:
        raise click.exceptions.Exit(1)
