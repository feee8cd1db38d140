"""The outcomes of a chaos run as the page docs/reliability.md.

python tests/chaos/report.py OUTCOMES.json PAGE.md
"""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos.faults import FAULTS

HEAD = """\
# Reliability

Every fault is injected during a sale, while a crowd keeps buying two products: one sells out, the other does not. A try
is clean if every 202 was decided exactly once; the whole stock and no more was sold, and no buyer got an immediate
sold-out answer before that; stats, Redis, orders and the buyers' answers agree; and `seckill audit` finds nothing. The
longest pause is the one between two decisions, from the fault to the end of the sale; it includes the victim's
downtime. `make chaos` wrote this page ({tries} tries, everything on one 2-core machine); `tests/chaos/faults.py`
defines the faults.

| fault | what is done | tries | accepted | at once | decided | sold | violations | longest pause, median (worst) |
|---|---|---|---|---|---|---|---|---|
"""


def row(name: str, action: str, outcomes: list[dict[str, Any]]) -> str:
    pauses = sorted(each["pause_ms"] for each in outcomes)
    cells = (
        name,
        action,
        len(outcomes),
        *(
            f"{sum(each[column] for each in outcomes):,}"
            for column in ("accepted", "at_once", "decided", "sold")
        ),
        sum(len(each["violations"]) for each in outcomes),
        f"{median(pauses) / 1_000:.1f} s ({pauses[-1] / 1_000:.1f} s)",
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def page(outcomes: list[dict[str, Any]]) -> str:
    """The whole page; a fault that was not tried has no row."""
    text = HEAD.format(tries=len(outcomes))
    for fault in FAULTS:
        tries = [each for each in outcomes if each["fault"] == fault.name]
        if tries:
            text += row(fault.name, " + ".join(each.action for each in fault.all()), tries)
    return text


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.write_text(page(json.loads(source.read_text())))
    print(f"wrote {target}")
