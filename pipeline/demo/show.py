"""The demo on a terminal: progress bars while it runs, then a table and the verdict."""

import asyncio
import math
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.demo.observations import Observations, Plan
from pipeline.demo.sale import Sale
from pipeline.demo.verdict import Expectation, by_code, judge
from pipeline.domain.codes import MESSAGES
from pipeline.orders.feed import OrdersFeed
from pipeline.process.event_loop import use_uvloop

REFRESH_INTERVAL_S = 0.1


def run_demo(plan: Plan, feed: OrdersFeed, console: Console) -> bool:
    """Runs the sale and prints its results. Returns whether every check holds.

    Raises DemoRefused or KafkaUnavailable.
    """
    use_uvloop()
    findings = asyncio.run(_run(Sale(plan, feed), console))
    checks = judge(plan, findings)
    console.print(_figures(plan, findings))
    for check in checks:
        console.print(_line(check), soft_wrap=True)
    return all(check.holds for check in checks)


async def _run(sale: Sale, console: Console) -> Observations:
    plan = sale.plan
    async with sale.opened():
        console.print(
            f"{plan.buyers:,} buyers want {plan.stock:,} units of {plan.product_id}"
            f" ({plan.connections} connections, {plan.repeats:,} repeats, {plan.bad:,} bad requests)",
            soft_wrap=True,
        )
        await _show(sale, asyncio.create_task(sale.sell()), console)
        await sale.read_results()
    return sale.findings


async def _show(sale: Sale, selling: asyncio.Task[None], console: Console) -> None:
    """Draws the progress bars until the sale is over."""
    plan, findings = sale.plan, sale.findings
    purchases = plan.buyers + plan.repeats
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        answered = progress.add_task("answered", total=purchases)
        decided = progress.add_task("decided", total=purchases)
        sold = progress.add_task("sold", total=min(plan.stock, plan.buyers))
        polled = progress.add_task("polled", total=purchases)
        try:
            while not selling.done():
                await asyncio.wait({selling}, timeout=REFRESH_INTERVAL_S)
                progress.update(answered, completed=findings.answered)
                progress.update(decided, completed=findings.decided + len(findings.at_once))
                progress.update(sold, completed=findings.sold)
                progress.update(polled, completed=len(findings.answers) + len(findings.at_once))
            await selling
        finally:
            selling.cancel()


def _figures(plan: Plan, findings: Observations) -> Table:
    table = Table(show_header=False, title=f"sale of {plan.product_id}", title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    table.add_row("sold", f"{findings.sold:,}", f"of {plan.stock:,}")
    for code, count in sorted(by_code(findings).items(), reverse=True):
        table.add_row(f"code {code.value}", f"{count:,}", MESSAGES[code])
    table.add_row("of these, at once", f"{len(findings.at_once):,}", "without the log, after the sell-out")
    table.add_row("refused", f"{findings.bad_requests_refused:,}", "bad requests, each with its 4xx")
    if findings.retried:
        table.add_row("retried", f"{findings.retried:,}", "after no answer, a 429 or a 503")
    samples = sorted(findings.latencies_ms)
    for percent in (50, 99):
        table.add_row(
            f"accepted to decided, p{percent}",
            f"{_percentile(samples, percent):.1f} ms" if samples else "-",
            f"measured by clients, {len(samples):,} long polls",
        )
    table.add_row("answered", _rate(findings), "with a 202 or at once")
    orders = f"{findings.orders_repeated:,} repeats dropped" if findings.orders_repeated else "no repeats"
    table.add_row("orders", f"{len(findings.order_ids):,}", f"in the topic, {orders}")
    return table


def _rate(findings: Observations) -> str:
    elapsed_s = findings.last_answered_at_s - findings.began_at_s
    return f"{findings.answered / elapsed_s:,.0f}/s" if elapsed_s > 0 else "-"


def _percentile(ascending: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile."""
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def _line(check: Expectation) -> str:
    mark = "[green]ok  [/]" if check.holds else "[red]FAIL[/]"
    return f"{mark}  {check.name}: {check.found}"
