"""A `topics.yaml` of the test's own."""

from pathlib import Path

import pytest
from followers import own_topics_file


@pytest.fixture
def topics_file(tmp_path: Path) -> Path:
    """A `topics.yaml` whose topics have names that no other test has; they are not made yet."""
    return own_topics_file(tmp_path)
