"""Every fault, during a sale: each 202 is decided once, exactly the stock is sold, and Redis, orders and results agree.

`--chaos-tries N` runs each fault N times instead of its own number, each time with another seed; `--chaos-report FILE`
writes the outcomes as JSON. `test_pairs.py` has two faults at a time.
"""

import pytest

from chaos.faults import SINGLE_FAULTS, Fault
from chaos.runner import Outcome, attempt
from chaos.stage import Stage

pytestmark = [pytest.mark.durable, pytest.mark.timeout(3_600)]


@pytest.mark.parametrize("fault", SINGLE_FAULTS, ids=lambda fault: fault.name)
def test_a_single_fault(
    stage: Stage, fault: Fault, outcomes: list[Outcome], pytestconfig: pytest.Config
) -> None:
    attempt(stage, fault, pytestconfig.getoption("--chaos-tries") or fault.tries, outcomes)
