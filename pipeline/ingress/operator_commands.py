"""Commands of operators: each is a record of its own in the product's partition, answered once it is decided.

Like `errors.py`, this module knows nothing of HTTP.
"""

from typing import NamedTuple

from pipeline.domain.receipts import Receipt
from pipeline.ingress.command_log.group_commit import GroupCommit
from pipeline.ingress.decisions.finder import DecisionFinder
from pipeline.ingress.errors import CommandNotSent, DecisionDeleted, KeyReused, NotDecidedYet
from pipeline.ingress.operator_sends import OperatorSends
from pipeline.kafka.producer import Sender
from pipeline.kafka.topics import partition_of
from pipeline.messages.commands import (
    ControlCommand,
    OpenCommand,
    decode_command,
    encode_control,
    encode_open,
)
from pipeline.messages.decisions import ControlDecision, OpenDecision
from pipeline.settings import InForce


class DecidedCommand(NamedTuple):
    """The decision on a command. If the command repeats an earlier one under the same key, the decision on that one.

    `decision` is None if the earlier command was applied, but retention has deleted the decision on it.
    """

    receipt: Receipt
    decision: OpenDecision | ControlDecision | None
    is_repeat: bool


class OperatorCommands:
    def __init__(
        self,
        in_force: InForce,
        producer: Sender,
        topic: str,
        commits: GroupCommit,
        decisions: DecisionFinder,
    ) -> None:
        self._in_force = in_force
        self._producer = producer
        self._topic = topic
        self._commits = commits
        self._decisions = decisions
        self._sends = OperatorSends("a command")

    async def decided(self, command: OpenCommand | ControlCommand) -> DecidedCommand:
        """Write this command to the log and wait for the decision.

        Raises MalformedCommand, CommandNotSent, CommandNotAcknowledged, NotDecidedYet, KeyReused, TooManyWaiters,
        TooManyLookups or KafkaUnavailable. After the last two, only the decision on an earlier command is unknown.
        """
        product_id = command.product_id
        value = encode_open(command) if isinstance(command, OpenCommand) else encode_control(command)
        decode_command(product_id.encode(), value)
        self._decisions.check_room()
        receipt = await self._send(product_id, value)
        record = await self._decisions.wait_for_own(receipt, self._in_force.settings.wait_timeout_ms)
        decision = None if record is None else record.result()
        if not isinstance(decision, OpenDecision | ControlDecision):
            raise NotDecidedYet(receipt)
        if decision.repeats is None:
            return DecidedCommand(receipt, decision, is_repeat=False)
        return await self._repeated(command, receipt, Receipt(receipt.partition, decision.repeats, 0))

    async def _repeated(
        self, command: OpenCommand | ControlCommand, receipt: Receipt, earlier: Receipt
    ) -> DecidedCommand:
        """The decision on the command at `earlier`, which has the key of the one at `receipt`."""
        try:
            record = await self._decisions.find(earlier)
        except DecisionDeleted:
            return DecidedCommand(earlier, None, is_repeat=True)
        first = None if record is None else record.result()
        if not isinstance(first, OpenDecision | ControlDecision):
            raise NotDecidedYet(receipt)
        if not _is_same(command, first):
            raise KeyReused(earlier)
        return DecidedCommand(earlier, first, is_repeat=True)

    async def _send(self, product_id: str, value: bytes) -> Receipt:
        partition = partition_of(product_id, self._commits.partitions)
        if self._commits.is_overdue(partition):
            raise CommandNotSent
        offset = await self._sends.send(
            self._producer.send(self._topic, partition, product_id.encode(), value),
            self._in_force.settings.send_timeout_ms,
        )
        self._commits.note_end(partition, offset + 1)
        return Receipt(partition, offset, 0)


def _is_same(command: OpenCommand | ControlCommand, first: OpenDecision | ControlDecision) -> bool:
    """Whether both change the same. Their reasons and authors may differ."""
    if isinstance(command, OpenCommand):
        return isinstance(first, OpenDecision) and command.opening == first.opening
    return isinstance(first, ControlDecision) and command.control == first.control
