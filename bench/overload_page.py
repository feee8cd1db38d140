"""The results of `make overload` as a page with a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

HEAD = """\
# Overload

`make overload` wrote this page with Python {python} on {cpus} cores, shared by broker, Redis, all our processes and the
generator. Number of ingresses: {ingresses}.

The generator ([`bench/openloop.c`](../bench/openloop.c)) is open-loop: it sends on a schedule, however
slowly it is answered, and a latency is counted from when a request was due. *Decided* are the purchases that were
accepted, each of them decided. How an ingress refuses the others: [architecture.md](architecture.md#overload).

![Offered and decided](overload.svg)
"""
TITLES = {"kept": "Connections that are kept", "new": "A new connection for each purchase"}
TABLE = (
    "| offered/s | decided/s | refused/s | other | accepted p50 ms | p99 ms | refused p50 ms | p99 ms"
    " | generator CPU |"
)
COLOURS = {"kept": "#2a7ab9", "new": "#e69138"}
WIDTH, HEIGHT, MARGIN = 560, 300, 60


def write(results: Row, directory: Path) -> None:
    """Writes overload.md and overload.svg into this directory."""
    (directory / "overload.md").write_text(text(results))
    (directory / "overload.svg").write_text(picture(results))


def text(results: Row) -> str:
    sections = [HEAD.format(**results["machine"])]
    for each in results["kinds"]:
        rows = [*each["curve"], each["overload"]]
        seconds = results["seconds"]
        sections += [
            f"## {TITLES[each['kind']]}\n",
            "\n".join([TABLE, "| --- " * TABLE.count(" |") + "|", *map(_row, rows)]) + "\n",
            f"The last row is five times the peak for {seconds} s. What must hold for it:\n",
            "\n".join(["| | | |", "| --- | --- | --- |", *map(_check, each["checks"])]) + "\n",
        ]
    return "\n".join(sections)


def _row(run: Row) -> str:
    offered = run["offered"]
    statuses, seconds = offered["statuses"], offered["seconds"]
    refused = statuses.get("429", 0)
    other = sum(statuses.values()) - refused - statuses.get("202", 0) + offered["broken"]
    accepted_ms, refused_ms = offered["accepted_ms"], offered["refused_ms"]
    cells = [
        f"{offered['per_s']:,.0f}",
        f"{run['decided_per_s']:,.0f}",
        f"{refused / seconds:,.0f}",
        f"{other:,}",
        *(f"{each[name]:,.1f}" for each in (accepted_ms, refused_ms) for name in ("p50", "p99")),
        f"{offered['cpu_s'] / seconds:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def _check(check: Sequence[Any]) -> str:
    name, holds, figure = check
    return f"| {'yes' if holds else '**no**'} | {name} | {figure} |"


def picture(results: Row) -> str:
    """The goodput curves."""
    curves = {
        each["kind"]: [(run["offered"]["per_s"], run["decided_per_s"]) for run in each["curve"]]
        for each in results["kinds"]
    }
    points = [point for curve in curves.values() for point in curve]
    most_offered, most_decided = max(x for x, _ in points), max(y for _, y in points) * 1.1

    def at(offered: float, decided: float) -> str:
        x = MARGIN + offered / most_offered * WIDTH
        return f"{x:.1f},{20 + HEIGHT - decided / most_decided * HEIGHT:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 2 * MARGIN}" height="{HEIGHT + 80}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH + 2 * MARGIN}" height="{HEIGHT + 80}" fill="white"/>',
        f'<path d="M{at(0, most_decided)} L{at(0, 0)} L{at(most_offered, 0)}" fill="none" stroke="#888"/>',
    ]
    for step in range(1, 5):
        offered, decided = step * most_offered / 4, step * most_decided / 4
        x, y = at(offered, 0).split(",")
        parts.append(f'<text x="{x}" y="{float(y) + 18:.1f}" text-anchor="middle">{offered:,.0f}</text>')
        x, y = at(0, decided).split(",")
        parts.append(f'<text x="{float(x) - 6:.1f}" y="{y}" text-anchor="end">{decided:,.0f}</text>')
    parts.append(f'<text x="{MARGIN + WIDTH / 2}" y="{HEIGHT + 60}" text-anchor="middle">offered/s</text>')
    parts.append(f'<text x="{MARGIN}" y="14">decided/s</text>')
    for number, (kind, curve) in enumerate(curves.items(), 1):
        line = " ".join(at(*point) for point in curve)
        label_y = HEIGHT - 18 * number
        parts += [
            f'<polyline points="{line}" fill="none" stroke="{COLOURS[kind]}" stroke-width="2"/>',
            *(
                f'<circle cx="{at(*point).split(",")[0]}" cy="{at(*point).split(",")[1]}" r="3"'
                f' fill="{COLOURS[kind]}"/>'
                for point in curve
            ),
            f'<text x="{WIDTH - 160}" y="{label_y}" fill="{COLOURS[kind]}">{TITLES[kind].lower()}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
