"""Prints the report of an audit as a table."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from pipeline.audit.report import PROMISES, Check, Cut, Finding, Report


def print_report(report: Report, console: Console) -> None:
    """Print a row per check, then what was skipped, the last command checked in each partition, and the verdict."""
    table = Table("check", "what must hold", box=None, pad_edge=False)
    table.add_column("examined", justify="right")
    table.add_column("violations", justify="right")
    table.add_column("first example", overflow="fold")
    for check, finding in report.findings.items():
        style = "bold red" if finding.violations else "yellow" if finding.skipped else None
        table.add_row(*_row(check, finding), style=style)
    console.print(table)
    for check, finding in report.findings.items():
        for reason in finding.skipped:
            console.print(f"skipped: {check}: {reason}", style="yellow", markup=False)
    console.print(_cuts(report.cuts), markup=False, highlight=False)
    print_verdict(report, console)


def print_verdict(report: Report, console: Console) -> None:
    """Print the verdict on one line."""
    verdict = "no violations" if report.clean else f"VIOLATIONS: {', '.join(report.failed)}"
    console.print(
        f"{verdict} ({report.seconds:.1f} s)",
        style="bold green" if report.clean else "bold red",
        markup=False,
    )


def _row(check: Check, finding: Finding) -> Iterable[str]:
    example = ""
    if finding.first is not None:
        location, what = finding.first
        example = f"{location}: {what}"
    # Brackets are markup to rich.
    cells = (check.value, PROMISES[check], f"{finding.examined:,}", f"{finding.violations:,}", example)
    return (cell.replace("[", r"\[") for cell in cells)


def _cuts(cuts: Iterable[Cut]) -> str:
    parts = []
    for cut in cuts:
        above = f" ({cut.above:,} above)" if cut.above else ""
        parts.append(
            f"{cut.partition}: {cut.offset}{above}" if cut.offset >= 0 else f"{cut.partition}: -{above}"
        )
    return "last command checked, by partition: " + ", ".join(parts)
