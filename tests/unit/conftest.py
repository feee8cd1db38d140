"""The ingress for tests of final refusals."""

import pytest
from refusal_world import Ingress, sold_out_partition


@pytest.fixture
def sold_out() -> Ingress:
    """A process that has seen the sale of the last unit."""
    ingress = Ingress(sold_out_partition(), follows_from=0)
    ingress.feed_all()
    return ingress
