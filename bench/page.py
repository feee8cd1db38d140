"""The results of `make bench` as a page with a picture. Parts that were not measured are left out."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import protection
from polls import CONNECTIONS, POLLS_PER_S

Row = dict[str, Any]

HEAD = """\
# Benchmark

`make bench` wrote this page from a single run with Python {python} on {cpus} cores, shared by broker, Redis, all our
processes and the load generator. Figures from several rounds are medians. The floors next to the figures are from the
same run: what this machine does with the least code that could do the job. Compare the ratios; the absolute figures
depend on the machine.
"""

CALLS = """\
## What a purchase costs

CPU time (user and system) of every process except the load generator, in microseconds per answer. One *hello* is the
CPU time that a bare aiohttp server needs to read the body of a POST and say hello, at {connections} connections:
{hello_us:.0f} µs here, measured again right before each figure. `sync` and `async` purchases win, `refused` ones are
decided against the buyer, `sold-out` ones find no stock left.
"""

HOPS = """\
The p50 of a synchronous purchase over one connection: {sync_ms}. Its floor is {purchase_ms:.1f} ms, the sum of the hops
that it must make, each measured on its own without our code: the decider sees the command ({followed_ms:.1f} ms), Redis
answers ({redis_ms:.1f} ms), the ingress sees the decision ({followed_ms:.1f} ms). A single record is acknowledged after
{acknowledged_ms:.1f} ms.
"""

ENGINE = """\
## Engine

One worker drains a backlog of commands. The floor is one consumer, the same Lua and one producer.
"""

PROTECTION = """\
## Flow control and tokens

CPU time of the ingress per answer to an asynchronous purchase over {connections} connections, and as a multiple of one
without protection, measured right before. The limits per user, per address and of the process are on but not reached; a
*new* token is one that the ingress verifies (HS256), a *known* one is in its cache. The other rows are refusals.
"""
PROTECTION_HEAD = ("protection", "ingress µs", "ratio")

POLLS = f"""\
## Polls of old receipts

Synchronous purchases over {CONNECTIONS} connections, alone and during {POLLS_PER_S} polls per second. A malformed
receipt is refused at once, so it shows what the HTTP call alone costs; the decision on an old one is read from the
decision log, or the poll is refused with 503 while too many others wait. The ratio is to the same purchases alone.
"""
POLLS_HEAD = ("polls of", "purchases/s", "ratio", "p50 ms", "answers to the polls")

PAUSES = """\
## Pauses

The longest time from a command to its decision, by the broker's clock, under a light load on all partitions: while
nothing happens, while a second worker starts and joins, while it leaves.
"""
PAUSES_HEAD = ("partitions", "calm", "join", "leave")
CROWD = """\
## A crowd that buys nothing

Next to {connections:,} idle, half-open and slow connections, synchronous purchases have {rate:.2f} times the rate and
{p50:.2f} times the p50 that they have alone. Answers to {readers} connections that read a product's stats, by status:
{stats}; to readiness checks meanwhile: {readiness}.
"""

COLOURS = {
    "ingress": "#2a7ab9",
    "decider": "#6aa84f",
    "follower": "#e69138",
    "orders": "#cc4125",
    "kafka": "#8e7cc3",
    "redis": "#a61c00",
    "hello": "#b8c4cc",
}
OURS, FLOOR = COLOURS["ingress"], COLOURS["hello"]
BAR_WIDTH, ROW_HEIGHT, LABEL_WIDTH = 420, 44, 250


def write(results: Row, directory: Path) -> None:
    """Writes benchmark.md and benchmark.svg into this directory."""
    (directory / "benchmark.md").write_text(text(results, with_picture=True))
    (directory / "benchmark.svg").write_text(picture(results))


def text(results: Row, *, with_picture: bool = False) -> str:
    sections = [HEAD.format(**results["machine"])]
    if with_picture:
        sections.append("![What it costs](benchmark.svg)\n")
    sections += _calls(results)
    if engine := results.get("engine"):
        sections += [ENGINE, _table(ENGINE_HEAD, map(_drain, engine))]
    sections += _guards(results)
    if costs := results.get("protection"):
        sections += [
            PROTECTION.format(connections=protection.CONNECTIONS),
            _table(PROTECTION_HEAD, map(_protected, costs)),
        ]
    if polls := results.get("polls"):
        sections += [POLLS, _table(POLLS_HEAD, map(_polls, polls))]
    if pauses := results.get("pauses"):
        sections += [PAUSES, _table(PAUSES_HEAD, map(_pause, pauses)), _outages(results["outages"])]
    if crowd := results.get("crowd"):
        sections.append(_crowd(*crowd))
    return "\n".join(sections)


def _pause(each: Row) -> tuple[str, ...]:
    return (str(each["partitions"]), *(f"{each[f'{name}_ms']:,.0f} ms" for name in PAUSES_HEAD[1:]))


def _outages(outages: Sequence[Row]) -> str:
    delays = ", ".join(
        f"{each['redis_away_s']:.0f} s: {each['first_decision_ms']:,.0f} ms" for each in outages
    )
    return f"From the return of Redis to the next decision, after it hung for {delays}.\n"


def _crowd(silent: Row, readers: Row) -> str:
    return CROWD.format(
        connections=silent["connections"],
        rate=silent["per_s_ratio"],
        p50=silent["p50_ratio"],
        readers=readers["connections"],
        stats=_statuses(readers["stats"]),
        readiness=_statuses(readers["readiness"]),
    )


def _statuses(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{count:,} × {status}" for status, count in sorted(counts.items()))


# --- calls ---------------------------------------------------------------------------------------


def _calls(results: Row) -> Iterator[str]:
    if calls := results.get("calls"):
        unit = _hello(calls)
        roles = list(dict.fromkeys(role for each in calls for role in each["cpu_us"] if role != "hello"))
        roles.remove("total")
        yield CALLS.format(connections=unit["connections"], hello_us=unit["cpu_us"]["total"])
        head = (
            "call",
            "connections",
            *(f"{role} µs" for role in roles),
            "total µs",
            "hellos",
            "purchases/record",
        )
        yield _table((*head, "answers/s", "p50 ms", "p99 ms"), (_call(each, roles) for each in calls))
        idle = ", ".join(f"{role} {spent:.0f}" for role, spent in results["idle"].items())
        yield f"Idle CPU time, in milliseconds per second: {idle}.\n"
    if two := results.get("two_ingresses"):
        rates = ", ".join(f"{each['per_s']:,.0f} {each['mode']} answers/s" for each in two)
        yield f"Two ingresses with {two[0]['connections']} connections, on the same cores: {rates}.\n"
    if hops := results.get("hops"):
        bare_ms = 2 * hops["followed_ms"] + hops["redis_ms"]
        yield HOPS.format(**hops, purchase_ms=bare_ms, sync_ms=_sync_alone(results.get("calls", [])))


def _hello(calls: Sequence[Row]) -> Row:
    return next(each for each in calls if each["mode"] == "hello")


def _call(each: Row, roles: Sequence[str]) -> tuple[str, ...]:
    spent = each["cpu_us"]
    per_record = each["purchases_per_record"]
    return (
        each["mode"],
        str(each["connections"]),
        *(f"{spent[role]:,.0f}" if role in spent else "" for role in roles),
        f"{spent['total']:,.0f}",
        f"{each['hellos']:.2f}",
        "" if per_record is None else f"{per_record:,.1f}",
        f"{each['per_s']:,.0f}",
        f"{each['p50_ms']:.1f}",
        f"{each['p99_ms']:.1f}",
    )


def _sync_alone(calls: Sequence[Row]) -> str:
    alone = [each["p50_ms"] for each in calls if (each["mode"], each["connections"]) == ("sync", 1)]
    return f"{alone[0]:.1f} ms" if alone else "not measured"


# --- engine and the rest -------------------------------------------------------------------------

ENGINE_HEAD = (
    "purchases/record",
    "winners",
    "purchases",
    "decided/s",
    "floor/s",
    "ratio",
    "CPU µs",
    "of which",
    "floor CPU µs",
)


def _drain(each: Row) -> tuple[str, ...]:
    spent = dict(each["engine_cpu_us"])
    total = spent.pop("total")
    return (
        str(each["per_record"]),
        f"{each['winners']:,}",
        f"{each['purchases']:,}",
        f"{each['engine_per_s']:,.0f}",
        f"{each['floor_per_s']:,.0f}",
        f"{each['ratio']:.2f}",
        f"{total:.1f}",
        ", ".join(f"{role} {us:.1f}" for role, us in spent.items()),
        f"{each['floor_cpu_us']['total']:.1f}",
    )


def _guards(results: Row) -> Iterator[str]:
    if guards := results.get("guards"):
        yield (
            f"Limiter and breaker together add {guards['cost']:.1%} to the CPU time of decider and Redis per decision"
            " (median of pairs of runs; below zero is noise).\n"
        )
    if workers := results.get("workers"):
        one, two = (each["decided_per_s"] for each in workers)
        yield f"Two workers decide {two:,.0f} purchases/s of four products as they arrive; one decides {one:,.0f}.\n"
    if rebuild := results.get("rebuild"):
        head = ("purchases", "winners", "seconds", "bytes per winner (10-byte ids)")
        yield f"## Rebuild of Redis\n\n{_table(head, map(_rebuilt, rebuild))}"


def _protected(each: Row) -> tuple[str, ...]:
    return each["name"], f"{each['cpu_us']:.0f}", f"{each['ratio']:.2f}"


def _polls(each: Row) -> tuple[str, ...]:
    answers = ", ".join(f"{count:,} x {status}" for status, count in sorted(each["statuses"].items()))
    return each["beside"], f"{each['per_s']:,.0f}", f"{each['ratio']:.2f}", f"{each['p50_ms']:.1f}", answers


def _rebuilt(each: Row) -> tuple[str, ...]:
    bytes_per_winner = each["bytes_per_winner"]
    return (
        f"{each['purchases']:,}",
        f"{each['winners']:,}",
        f"{each['seconds']:.1f}",
        "" if bytes_per_winner is None else f"{bytes_per_winner:.0f}",
    )


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# --- picture -------------------------------------------------------------------------------------


def picture(results: Row) -> str:
    """Horizontal bars: each call in hellos, by process; each engine load next to its floor, scaled to the larger."""
    calls, unit = results["calls"], _hello(results["calls"])
    shown = [each for each in calls if each["connections"] == unit["connections"]]
    most = max(each["hellos"] for each in shown)
    rows = [_spent_bar(each, most) for each in shown] + [_pair_of_bars(each) for each in results["engine"]]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL_WIDTH + BAR_WIDTH + 150}"'
        f' height="{ROW_HEIGHT * (len(rows) + 1)}" font-family="sans-serif" font-size="13">',
        _legend([role for role in COLOURS if any(role in each["cpu_us"] for each in shown)]),
    ]
    for number, row in enumerate(rows, start=1):
        parts.append(f'<g transform="translate(0 {ROW_HEIGHT * number})">{row}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _legend(roles: Sequence[str]) -> str:
    step = (LABEL_WIDTH + BAR_WIDTH) // len(roles)
    return "".join(_bar(step * index, 2, 12, COLOURS[role], role) for index, role in enumerate(roles))


def _spent_bar(each: Row, most: float) -> str:
    spent: Mapping[str, float] = each["cpu_us"]
    total = each["hellos"]
    x, parts = float(LABEL_WIDTH), [_label(f"{each['mode']}, {each['connections']} connections")]
    for role, colour in COLOURS.items():
        width = BAR_WIDTH * spent.get(role, 0.0) / spent["total"] * total / most
        parts.append(_bar(x, 8, width, colour, f"{total:.2f} hellos" if role == list(COLOURS)[-1] else ""))
        x += width
    return "".join(parts)


def _pair_of_bars(each: Row) -> str:
    most = max(each["engine_per_s"], each["floor_per_s"])
    winners = "all" if each["winners"] == each["purchases"] else f"{each['winners']:,}"
    parts = [_label(f"engine, {each['per_record']} per record, {winners} win")]
    for y, name, value, colour in (
        (0, "ours", each["engine_per_s"], OURS),
        (15, "floor", each["floor_per_s"], FLOOR),
    ):
        parts.append(_bar(LABEL_WIDTH, y, BAR_WIDTH * value / most, colour, f"{name} {value:,.0f}/s"))
    return "".join(parts)


def _label(words: str) -> str:
    return f'<text x="0" y="20" fill="#555">{escape(words)}</text>'


def _bar(x: float, y: float, width: float, colour: str, words: str) -> str:
    bar = f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="13" fill="{colour}"/>'
    if not words:
        return bar
    return bar + f'<text x="{x + width + 6:.1f}" y="{y + 11}" fill="#555">{escape(words)}</text>'
