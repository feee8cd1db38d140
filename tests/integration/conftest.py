"""Fixture: a separate `topics.yaml` for each test."""

from pathlib import Path

import pytest
from followers import own_topics_file


@pytest.fixture
def topics_file(tmp_path: Path) -> Path:
    """A `topics.yaml` with topic names that no other test uses; the topics are not created yet."""
    return own_topics_file(tmp_path)
