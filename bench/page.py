"""The results of `make bench` as a page with a picture."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

HEAD = """\
# How fast

`make bench` wrote this page from one run, on {cpus} cores, with broker, Redis, all our processes and the load
generator on them, Python {python}. Every figure has its floor beside it, measured in the same run: what the same
machine does with the least code that could do it. Take the ratios along; the figures are those of the machine.

![Ours beside its floor](benchmark.svg)
"""

BAR_WIDTH, ROW_HEIGHT, LABEL_WIDTH = 420, 44, 250


def write(results: dict[str, Any], directory: Path) -> None:
    """Writes benchmark.md and benchmark.svg there."""
    (directory / "benchmark.md").write_text(text(results))
    (directory / "benchmark.svg").write_text(picture(pairs(results)))


def text(results: dict[str, Any]) -> str:
    hops, guards = results["hops"], results["guards"]
    one, two = (each["decided_per_s"] for each in results["workers"])
    sections = [
        HEAD.format(**results["machine"]),
        "## Calls\n\nThe floor is a bare aiohttp server that reads the body of a POST and says hello.\n",
        _table(
            ("call", "ingresses", "connections", "answers/s", "floor/s", "ratio", "p50 ms", "p99 ms"),
            [_call(each, results) for each in results["calls"] if each["mode"] != "hello"],
        ),
        f"One synchronous purchase makes these hops, here each by itself and bare: its command is seen by the decider"
        f" ({hops['followed_ms']:.1f} ms), Redis answers ({hops['redis_ms']:.1f} ms), its order is acknowledged"
        f" ({hops['acknowledged_ms']:.1f} ms), its result is seen by the ingress: {hops['purchase_ms']:.1f} ms.\n",
        "## Engine\n\nOne worker drains a log that is full. The floor is one consumer, the same Lua, one producer.\n",
        _table(
            ("purchases", "a record", "winners", "limit", "decided/s", "floor/s", "ratio", "Redis µs each"),
            [_drain(each) for each in results["engine"]],
        ),
        f"Limiter and breaker together take {guards['cost']:.1%} of the time (medians of runs in turn; below zero is"
        f" noise). Two workers decide {two:,.0f} purchases/s of four products while they arrive, one {one:,.0f}.\n",
        "## Redis\n",
        _table(
            ("rebuild of", "winners", "seconds", "bytes a winner (10-byte ids)"),
            [
                (
                    f"{each['purchases']:,}",
                    f"{each['winners']:,}",
                    f"{each['seconds']:.1f}",
                    f"{each['bytes_per_winner']:.0f}" if each["bytes_per_winner"] else "",
                )
                for each in results["rebuild"]
            ],
        ),
    ]
    return "\n".join(sections)


def pairs(results: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What the picture shows: a label, ours a second, the floor's."""
    shown = [
        (
            f"{each['mode']}, {each['ingresses']} ingress, {each['connections']} conn.",
            each["per_s"],
            _floor(each, results),
        )
        for each in results["calls"]
        if each["mode"] != "hello" and each["connections"] == 256
    ]
    return shown + [
        (
            f"engine, {each['per_record']} a record, {each['winners']:,} win",
            each["engine_per_s"],
            each["floor_per_s"],
        )
        for each in results["engine"]
        if not each["limit"]
    ]


def picture(rows: Sequence[tuple[str, float, float]]) -> str:
    """Horizontal bars, each pair scaled to the larger of the two."""
    height = ROW_HEIGHT * len(rows) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL_WIDTH + BAR_WIDTH + 130}" height="{height}"'
        ' font-family="sans-serif" font-size="13">'
    ]
    for number, (label, ours, floor) in enumerate(rows):
        top, most = ROW_HEIGHT * number + 10, max(ours, floor)
        parts.append(f'<text x="0" y="{top + 20}" fill="#555">{escape(label)}</text>')
        for line, (value, colour, name) in enumerate(
            ((ours, "#2a7ab9", "ours"), (floor, "#b8c4cc", "floor"))
        ):
            width = BAR_WIDTH * value / most
            y = top + 15 * line
            parts.append(f'<rect x="{LABEL_WIDTH}" y="{y}" width="{width:.0f}" height="13" fill="{colour}"/>')
            parts.append(
                f'<text x="{LABEL_WIDTH + width + 6:.0f}" y="{y + 11}" fill="#555">{name} {value:,.0f}/s</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


def _call(each: dict[str, Any], results: dict[str, Any]) -> tuple[str, ...]:
    floor = _floor(each, results)
    return (
        each["mode"],
        str(each["ingresses"]),
        str(each["connections"]),
        f"{each['per_s']:,.0f}",
        f"{floor:,.0f}",
        f"{each['per_s'] / floor:.2f}",
        f"{each['p50_ms']:.1f}",
        f"{each['p99_ms']:.1f}",
    )


def _floor(call: dict[str, Any], results: dict[str, Any]) -> float:
    same = ("ingresses", "connections")
    return next(
        float(each["per_s"])
        for each in results["calls"]
        if each["mode"] == "hello" and all(each[key] == call[key] for key in same)
    )


def _drain(each: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{each['purchases']:,}",
        str(each["per_record"]),
        f"{each['winners']:,}",
        "yes" if each["limit"] else "",
        f"{each['engine_per_s']:,.0f}",
        f"{each['floor_per_s']:,.0f}",
        f"{each['ratio']:.2f}",
        f"{each['redis_us']:.2f}",
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
