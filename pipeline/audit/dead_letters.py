"""Checks dead letters against malformed commands: exactly one unchanged copy of each, and nothing else.

On a broker without transactions, dead letters may repeat.

Memory: one digest per malformed command, about 150 bytes. (No process of this system writes malformed commands.)
"""

import re
from collections.abc import Mapping

from pipeline.audit.decision_log import digest
from pipeline.audit.report import Finding, Location
from pipeline.kafka.topics import Topic

_NUMBER = re.compile(rb"[0-9]{1,18}")


class DeadLetterBook:
    """The dead letters of one partition's commands.

    If the dead-letters topic has fewer partitions (`letter_partitions`), several command partitions share one.
    """

    def __init__(
        self, finding: Finding, requests: Topic, letter_partitions: int, partition: int, repeats_allowed: bool
    ) -> None:
        self._finding = finding
        self._requests = requests
        self._letter_partitions = letter_partitions
        self._partition = partition
        self._repeats_allowed = repeats_allowed
        self._expected: dict[int, int] = {}
        self._seen: set[int] = set()
        self._decided = -1

    def __len__(self) -> int:
        return len(self._expected)

    def decided(self, offset: int) -> None:
        """All commands up to this offset are decided."""
        self._decided = offset

    def malformed(self, offset: int, key: bytes | None, value: bytes | None, error: str) -> None:
        """The command record at this offset was decided as malformed."""
        self._finding.examined += 1
        self._expected[offset] = _digest(key, value or b"", error.encode())

    def letter(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, bytes | None],
        location: Location,
        commands_end: int,
    ) -> None:
        """A record of the partition of dead letters. Letters of other command partitions that share it are skipped."""
        source = self._source(headers)
        if source is None and self._partition == location.partition:
            self._finding.examine("the headers name no partition whose dead letters belong here", location)
        if source != self._partition:
            return
        self._finding.examined += 1
        at = _number(headers.get("offset"))
        if at in self._expected:
            if _digest(key, value or b"", headers.get("error") or b"") != self._expected[at]:
                self._finding.report(f"the dead letter of command {at} differs from the command", location)
            elif at in self._seen and not self._repeats_allowed:
                self._finding.report(f"a second dead letter for command {at}", location)
            self._seen.add(at)
        elif at <= self._decided or at >= commands_end:
            self._finding.report(
                f"a dead letter for command {headers.get('offset')!r}, which is not malformed", location
            )

    def finish(self) -> None:
        """Report malformed commands without a dead letter."""
        for offset in sorted(self._expected.keys() - self._seen):
            location = Location(self._requests.name, self._partition, offset)
            self._finding.report("a malformed command without a dead letter", location)

    def _source(self, headers: Mapping[str, bytes | None]) -> int | None:
        """The command partition that the headers name; None unless its dead letters belong here."""
        source = _number(headers.get("partition"))
        if headers.get("topic") != self._requests.name.encode() or source < 0:
            return None
        belongs_here = source % self._letter_partitions == self._partition % self._letter_partitions
        return source if source < self._requests.partitions and belongs_here else None


def _number(header: bytes | None) -> int:
    """The offset or partition in this header; -1 if it is neither."""
    return int(header) if header and _NUMBER.fullmatch(header) else -1


def _digest(key: bytes | None, value: bytes, error: bytes) -> int:
    return digest(repr((key, value, error)).encode())
