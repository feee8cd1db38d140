"""Degrades this process in stages while it is near its limits, or by hand (rule: `pipeline/domain/degradation.py`).

Off by default: `degradation_enable`. A stage set by hand (`degradation_stage`) always applies; when it is back to
`auto`, the automatic stages go on from there.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from pipeline.domain import degradation
from pipeline.domain.degradation import Stage, adjusted, is_crowded
from pipeline.ingress.errors import TooCrowded
from pipeline.ingress.flow_control.queues import PurchaseQueues
from pipeline.ingress.flow_control.saturation import Saturation
from pipeline.ingress.on_sale import OnSale
from pipeline.messages.degradation import DegradationChange
from pipeline.settings import InForce

UPDATE_MS = 200
BY_HAND = "by hand"

logger = logging.getLogger(__name__)


class Degrader:
    def __init__(
        self,
        in_force: InForce,
        queues: PurchaseQueues,
        saturation: Saturation,
        on_sale: OnSale,
        publish: Callable[[DegradationChange], None],
    ) -> None:
        """`publish` gets the stage at the start and each change; it must not block."""
        self._in_force = in_force
        self._queues = queues
        self._saturation = saturation
        self._on_sale = on_sale
        self._publish = publish
        self._automatic = degradation.Degradation()
        self.stage = Stage.NORMAL
        self.synchronous = 0
        """Synchronous purchases in progress; their handler counts them."""
        self.changes = 0
        self.refused = 0

    def check(self, product_id: str, partition: int) -> None:
        """Raises TooCrowded if the product takes no new purchases in this stage."""
        if self.stage < Stage.NO_CROWDS:
            return
        stock = self._on_sale.stock(product_id)
        if stock is not None and is_crowded(queued := self._queues.queued(partition), stock):
            self.refused += 1
            raise TooCrowded(queued, stock)

    def loads(self) -> Mapping[str, float]:
        """The loads that the stages follow, as fractions of their limits."""
        limit = self._in_force.settings.max_concurrent_requests
        return {
            "max_concurrent_requests": self.synchronous / limit,
            "queue_size": self._queues.fill(),
            "saturation": self._saturation.load,
        }

    def figures(self) -> dict[str, object]:
        return {
            "stage": self.stage.value,
            "enabled": self._in_force.settings.degradation_enable,
            "set": self._in_force.settings.degradation_stage,
            "loads": {name: round(load, 3) for name, load in self.loads().items()},
            "changes": self.changes,
            "refused": self.refused,
        }

    async def run(self) -> None:
        """Publish the stage, then adjust it until cancelled."""
        self._announce(self.stage, 0.0, "start")
        while True:
            self.update(int(time.monotonic() * 1_000))
            await asyncio.sleep(UPDATE_MS / 1_000)

    def update(self, now_ms: int) -> None:
        settings, loads = self._in_force.settings, self.loads()
        cause = max(loads, key=lambda name: loads[name])
        load, stage = loads[cause], Stage.NORMAL
        if settings.degradation_stage != "auto":
            stage, cause = Stage(int(settings.degradation_stage)), BY_HAND
            self._automatic = degradation.Degradation(stage)
        elif settings.degradation_enable:
            self._automatic = adjusted(self._automatic, load, settings.degradation_threshold, now_ms)
            stage = self._automatic.stage
        else:
            self._automatic = degradation.Degradation()
        if stage is self.stage:
            return
        logger.warning("degradation: stage %d -> %d (%s at %.2f)", self.stage, stage, cause, load)
        self.stage = stage
        self._saturation.refuses_all = stage is Stage.CLOSED
        self.changes += 1
        self._announce(stage, load, cause)

    def _announce(self, stage: Stage, load: float, cause: str) -> None:
        name = self._in_force.settings.worker_name
        self._publish(DegradationChange(name, stage, int(time.time() * 1_000), round(load, 3), cause))
