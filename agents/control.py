"""Follows the control topic while an agents process runs."""

from agents.app import App
from pipeline.control.follower import ControlFollower
from pipeline.kafka.record_format import NewerFormat
from pipeline.process.exit import die


def attach(app: App, control: ControlFollower) -> None:
    """Follow from the start of the application on, not only after its first rebalance."""

    async def follow() -> None:
        try:
            await control.run()
        except NewerFormat as error:
            die(str(error))

    app.on_start_tasks.append(follow)
