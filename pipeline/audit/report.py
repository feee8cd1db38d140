"""What an audit found, check by check."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

WHAT_LENGTH_MAX = 300
"""An example is a line for people; a decision record may have megabytes."""


class Check(StrEnum):
    """The checks, by the names that `--json` gives them."""

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
    Check.DECISIONS: "one decision for each command, in order",
    Check.REPEATS: "repeated decisions are the same bytes",
    Check.OUTCOMES: "each outcome is what the commands alone lead to",
    Check.REDIS: "Redis holds what the decisions add up to",
    Check.STOCK: "remaining + sold = opened, never below 0",
    Check.USER_LIMIT: "no user over his limit",
    Check.ORDERS: "orders are the wins, each once, in order",
    Check.WINDOW: "no win while the sale is shut",
    Check.NO_TTL: "nothing of the stock expires",
    Check.DEAD_LETTERS: "dead letters are the malformed commands",
}


class Location(NamedTuple):
    """Where something stands. In Redis (`topic` is then "redis") `offset` is the cursor's, None without one."""

    topic: str
    partition: int | None
    offset: int | None

    def __str__(self) -> str:
        return "/".join(str(part) for part in self if part is not None)


@dataclass(slots=True)
class Finding:
    """What one check has seen so far: a count, and the first example of what it must not see."""

    examined: int = 0
    violations: int = 0
    first: tuple[Location, str] | None = None
    skipped: list[str] = field(default_factory=list)
    """What could not be examined, and why. Never silent: the report shows it."""

    def look(self, wrong: str | None, place: Location) -> None:
        """One thing was examined; `wrong` says what is wrong with it, if anything."""
        self.examined += 1
        if wrong is not None:
            self.charge(wrong, place)

    def charge(self, wrong: str, place: Location) -> None:
        self.violations += 1
        if self.first is None:
            self.first = place, wrong if len(wrong) <= WHAT_LENGTH_MAX else wrong[:WHAT_LENGTH_MAX] + " ..."

    def take_over(self, other: "Finding") -> None:
        self.examined += other.examined
        self.violations += other.violations
        self.first = self.first or other.first
        self.skipped += other.skipped


Findings = dict[Check, Finding]


@dataclass(frozen=True, slots=True)
class Cut:
    """Up to which command a partition was examined (-1: none), and how many commands above it were not."""

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
        """Whether no check found a violation. What was skipped is in the findings."""
        return not any(finding.violations for finding in self.findings.values())

    @property
    def failed(self) -> list[Check]:
        return [check for check, finding in self.findings.items() if finding.violations]

    def document(self) -> dict[str, Any]:
        """For `--json`."""
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
        place, what = finding.first
        first = {**place._asdict(), "what": what}
    return {
        "check": check.value,
        "promise": PROMISES[check],
        "examined": finding.examined,
        "violations": finding.violations,
        "first": first,
        "skipped": finding.skipped,
    }
