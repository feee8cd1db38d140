"""Two faults at a time, and the faults that stay in the logs, with the same checks as in `test_faults.py`."""

import pytest

from chaos.faults import LASTING_FAULTS, PAIRS, Fault
from chaos.runner import Outcome, attempt
from chaos.stage import Stage

pytestmark = [pytest.mark.durable, pytest.mark.timeout(3_600)]


@pytest.mark.parametrize("fault", [*PAIRS, *LASTING_FAULTS], ids=lambda fault: fault.name)
def test_two_faults_at_once(
    stage: Stage, fault: Fault, outcomes: list[Outcome], pytestconfig: pytest.Config
) -> None:
    attempt(stage, fault, pytestconfig.getoption("--chaos-tries") or fault.tries, outcomes)
