"""What an audit found, check by check."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

WHAT_LENGTH_MAX = 300
"""Examples are for people; a decision record may be megabytes long."""


class Check(StrEnum):
    """The checks, by their names in `--json`."""

    DECISIONS = "decisions"
    REPEATS = "repeats"
    OUTCOMES = "outcomes"
    REDIS = "redis"
    STOCK = "stock"
    USER_LIMIT = "user_limit"
    ORDERS = "orders"
    WINDOW = "window"
    NO_TTL = "no_ttl"
    DEAD_LETTERS = "dead_letters"


PROMISES: Mapping[Check, str] = {
    Check.DECISIONS: "one decision per command, in order",
    Check.REPEATS: "repeated decisions are byte-identical",
    Check.OUTCOMES: "outcomes follow from the commands alone",
    Check.REDIS: "Redis matches the decisions",
    Check.STOCK: "remaining + sold = opened + adjusted, never below 0",
    Check.USER_LIMIT: "no user exceeds the limit",
    Check.ORDERS: "one order per win, in order",
    Check.WINDOW: "no win while the product is not on sale",
    Check.NO_TTL: "no stock key expires",
    Check.DEAD_LETTERS: "one dead letter per malformed command",
}


class Location(NamedTuple):
    """Where a finding is. In Redis (`topic` is then "redis") `offset` is the cursor's, None without one."""

    topic: str
    partition: int | None
    offset: int | None

    def __str__(self) -> str:
        return "/".join(str(part) for part in self if part is not None)


@dataclass(slots=True)
class Finding:
    """The results of one check so far: counts, and the first violation as an example."""

    examined: int = 0
    violations: int = 0
    first: tuple[Location, str] | None = None
    skipped: list[str] = field(default_factory=list)
    """What could not be examined, and why; the report always shows it."""

    def examine(self, wrong: str | None, location: Location) -> None:
        """Count one examined item; `wrong` says what is wrong with it, if anything."""
        self.examined += 1
        if wrong is not None:
            self.report(wrong, location)

    def report(self, wrong: str, location: Location) -> None:
        """Count a violation, but no examined item."""
        self.violations += 1
        if self.first is None:
            self.first = (
                location,
                wrong if len(wrong) <= WHAT_LENGTH_MAX else wrong[:WHAT_LENGTH_MAX] + " ...",
            )

    def merge(self, other: "Finding") -> None:
        """Add the results of `other`."""
        self.examined += other.examined
        self.violations += other.violations
        self.first = self.first or other.first
        self.skipped += other.skipped


Findings = dict[Check, Finding]


@dataclass(frozen=True, slots=True)
class Cut:
    """The last command examined in a partition (-1: none), and how many commands above it were not examined."""

    partition: int
    offset: int
    above: int


@dataclass(frozen=True, slots=True)
class Report:
    findings: Findings
    cuts: list[Cut]
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether no check found a violation. Skipped items do not count."""
        return not any(finding.violations for finding in self.findings.values())

    @property
    def failed(self) -> list[Check]:
        return [check for check, finding in self.findings.items() if finding.violations]

    def document(self) -> dict[str, Any]:
        """The JSON object of `--json`."""
        return {
            "clean": self.clean,
            "seconds": round(self.seconds, 3),
            "checks": [_document(check, finding) for check, finding in self.findings.items()],
            "partitions": [
                {"partition": cut.partition, "cut": cut.offset, "above": cut.above} for cut in self.cuts
            ],
        }


def _document(check: Check, finding: Finding) -> dict[str, Any]:
    first = None
    if finding.first is not None:
        location, what = finding.first
        first = {**location._asdict(), "what": what}
    return {
        "check": check.value,
        "promise": PROMISES[check],
        "examined": finding.examined,
        "violations": finding.violations,
        "first": first,
        "skipped": finding.skipped,
    }
