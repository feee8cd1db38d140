"""Every fault, in the middle of a sale: every 202 decided once, the stock exactly sold, Redis, orders, results agree.

`--chaos-tries N` runs each N times instead of as often as it says, with seeds of their own; `--chaos-report FILE` keeps
what came of it as JSON. `test_pairs.py` has two faults at a time.
"""

import pytest

from chaos.faults import SINGLE_FAULTS, Fault
from chaos.runner import Outcome, attempt
from chaos.stage import Stage

pytestmark = [pytest.mark.durable, pytest.mark.timeout(3_600)]


@pytest.mark.parametrize("fault", SINGLE_FAULTS, ids=lambda fault: fault.name)
def test_fault(stage: Stage, fault: Fault, outcomes: list[Outcome], pytestconfig: pytest.Config) -> None:
    attempt(stage, fault, pytestconfig.getoption("--chaos-tries") or fault.tries, outcomes)
