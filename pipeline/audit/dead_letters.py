"""Dead letters against malformed commands: each has one, as it came, and nothing else has.

A broker without transactions may hold a letter more than once.

Kept for each malformed command: one digest, some 150 bytes. (No process of this system makes malformed commands.)
"""

import re
from collections.abc import Mapping

from pipeline.audit.decision_log import digest
from pipeline.audit.report import Finding, Location
from pipeline.kafka.topics import Topic

_NUMBER = re.compile(rb"[0-9]{1,18}")


class DeadLetterBook:
    """The letters of one partition. Partitions share a grave (a partition of dead letters) if there are fewer."""

    def __init__(
        self, finding: Finding, requests: Topic, graves: int, partition: int, repeats_allowed: bool
    ) -> None:
        self._finding = finding
        self._requests = requests
        self._graves = graves
        self._partition = partition
        self._repeats_allowed = repeats_allowed
        self._expected: dict[int, int] = {}
        self._seen: set[int] = set()
        self._decided = -1

    def __len__(self) -> int:
        return len(self._expected)

    def decided(self, offset: int) -> None:
        """Everything up to this command is decided."""
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
        place: Location,
        commands_end: int,
    ) -> None:
        """A record of this partition's grave. One of another partition that shares it is passed over."""
        source = self._source(headers)
        if source is None and self._partition == place.partition:
            self._finding.look("a letter whose headers name no partition that is buried here", place)
        if source != self._partition:
            return
        self._finding.examined += 1
        at = _number(headers.get("offset"))
        if at in self._expected:
            if _digest(key, value or b"", headers.get("error") or b"") != self._expected[at]:
                self._finding.charge(f"the letter of command {at} is not the command as it came", place)
            elif at in self._seen and not self._repeats_allowed:
                self._finding.charge(f"a second letter of command {at}", place)
            self._seen.add(at)
        elif at <= self._decided or at >= commands_end:
            self._finding.charge(
                f"a letter of command {headers.get('offset')!r}, which is not malformed", place
            )

    def finish(self) -> None:
        for offset in sorted(self._expected.keys() - self._seen):
            place = Location(self._requests.name, self._partition, offset)
            self._finding.charge("a malformed command without a dead letter", place)

    def _source(self, headers: Mapping[str, bytes | None]) -> int | None:
        """The partition that the letter names, if it is one whose letters lie in the same grave."""
        source = _number(headers.get("partition"))
        if headers.get("topic") != self._requests.name.encode() or source < 0:
            return None
        same_grave = source % self._graves == self._partition % self._graves
        return source if source < self._requests.partitions and same_grave else None


def _number(header: bytes | None) -> int:
    """-1 if this header is no number that Kafka could mean."""
    return int(header) if header and _NUMBER.fullmatch(header) else -1


def _digest(key: bytes | None, value: bytes, error: bytes) -> int:
    return digest(repr((key, value, error)).encode())
