"""Settings in force, for parts that read them each time."""

from typing import Any

from pipeline.settings import LIVE_SETTINGS, InForce, Settings


def in_force(**settings: Any) -> InForce:
    """These settings, even if they are beyond their limits, and the defaults."""
    assert settings.keys() <= Settings.model_fields.keys()
    return InForce(Settings().model_copy(update=settings))


def change(in_force: InForce, **settings: Any) -> None:
    """Change these while the parts that read them run."""
    assert settings.keys() <= LIVE_SETTINGS
    in_force.settings = in_force.settings.model_copy(update=settings)
