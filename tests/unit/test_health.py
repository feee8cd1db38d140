"""A stopping process is still alive."""

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from in_force import in_force

from pipeline.ingress.http.health import HealthRoutes


@pytest.mark.parametrize("is_stopping", [False, True])
async def test_a_process_is_alive_while_it_stops(is_stopping: bool) -> None:
    unused: Any = None
    health = HealthRoutes(unused, unused, unused, unused, unused, unused, unused, in_force())
    health.is_stopping = is_stopping
    assert (await health.live(make_mocked_request("GET", "/health/live"))).status == 200
