"""Settings in force, for parts that read them each time."""

from typing import Any

from pipeline.settings import InForce, Settings


def in_force(**settings: Any) -> InForce:
    """These settings, even if they are beyond their limits, and the defaults. Assign its `settings` to change them."""
    assert settings.keys() <= Settings.model_fields.keys()
    return InForce(Settings().model_copy(update=settings))
