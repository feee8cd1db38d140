"""The search for a decision, in random decision logs that the protocol allows."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingress.decisions.search import End, NotFound, Trimmed, search

LOOKUPS = 60_000
READS_MAX = 16
"""Per lookup, in logs with a few repeats by crashes and zombies."""
READS_WITH_LOSS_MAX = 48
"""Per lookup, if the command log has also lost records."""


class Log:
    """The source offsets of a decision log; those below position `beginning` were deleted."""

    def __init__(self, sources: list[int], beginning: int = 0) -> None:
        self.sources = sources
        self.beginning = beginning

    def at(self, position: int) -> int | End | Trimmed:
        if position < self.beginning:
            return Trimmed(self.beginning)
        return self.sources[position] if position < len(self.sources) else End(len(self.sources))

    def find(self, wanted: int) -> tuple[int | NotFound, int]:
        """The result of the search, and its number of reads."""
        steps, reads = search(wanted), 1
        position = next(steps)
        try:
            while True:
                assert position >= 0
                position = steps.send(self.at(position))
                reads += 1
        except StopIteration as stop:
            return stop.value, reads

    def allowed(self, wanted: int) -> set[NotFound]:
        """The results that are correct if the search finds no decision."""
        kept = self.sources[self.beginning :]
        continues = max(kept, default=-1) > wanted
        hidden = {NotFound.UNDECIDED} if self.hides(wanted) else set()
        if wanted in kept and self.sources.index(wanted) >= self.beginning:
            return hidden
        if wanted in self.sources:
            # If only repeats follow, the log seems to end before them.
            return hidden | {NotFound.TRIMMED} if continues else {NotFound.TRIMMED, NotFound.UNDECIDED}
        if continues:
            return hidden | {NotFound.TRIMMED if self.beginning else NotFound.SKIPPED}
        is_all_deleted = wanted < self.beginning == len(self.sources)
        return {NotFound.TRIMMED} if is_all_deleted else {NotFound.UNDECIDED}

    def hides(self, wanted: int) -> bool:
        """Whether a late repeat is at exactly the position that would show that the command log has lost records."""
        before = self.sources[: min(wanted, len(self.sources))]
        has_lost = len(set(self.sources)) <= max(self.sources, default=-1)
        return has_lost and bool(before) and before[-1] < max(before)


@st.composite
def logs(draw: st.DrawFn, lost_max: int = 0) -> Log:
    """What deciders write: chunks in order, some of their records twice, or again much later.

    Before some chunks, up to `lost_max` commands are lost.
    """
    sources: list[int] = []
    late: list[list[int]] = []
    for size in draw(st.lists(st.integers(1, 6), max_size=25)):
        first = max(sources, default=-1) + 1
        if lost_max and draw(st.integers(0, 4)) == 0:
            first += draw(st.integers(1, lost_max))
        chunk = list(range(first, first + size))
        while chunk:
            length = draw(st.integers(1, len(chunk)))
            batch, chunk = chunk[:length], chunk[length:]
            fate = draw(st.sampled_from(("once", "once", "once", "twice", "late")))
            sources += batch * 2 if fate == "twice" else batch
            if fate == "late":
                late.append(batch)
        is_due = draw(st.booleans())
        if late and is_due:
            sources += late.pop(draw(st.integers(0, len(late) - 1)))
    return Log(sources, draw(st.integers(0, len(sources))) if draw(st.booleans()) else 0)


@given(logs() | logs(lost_max=40))
def test_every_decision_is_found_and_nothing_else(log: Log) -> None:
    for wanted in range(max(log.sources, default=-1) + 5):
        found, _ = log.find(wanted)
        if isinstance(found, int):
            assert log.sources[found] == wanted
            assert found >= log.beginning
        else:
            assert found in log.allowed(wanted), wanted


@given(logs() | logs(lost_max=40))
def test_the_length_of_the_log_bounds_the_reads(log: Log) -> None:
    for wanted in range(max(log.sources, default=-1) + 5):
        _, reads = log.find(wanted)
        assert reads <= 2 * len(log.sources) + 3


@pytest.mark.parametrize("commands", [300, 20_000])
def test_few_reads_suffice_if_little_is_repeated(commands: int) -> None:
    rng = random.Random(commands)
    reads: Counter[int] = Counter()
    while reads.total() < LOOKUPS:
        log = Log(_history(rng, commands))
        for _ in range(min(commands, LOOKUPS // 10)):
            wanted = rng.randrange(commands)
            found, count = log.find(wanted)
            assert isinstance(found, int)
            assert log.sources[found] == wanted
            reads[count] += 1
    assert max(reads) <= READS_MAX, sorted(reads.items())


def test_few_reads_suffice_if_the_command_log_has_lost_records() -> None:
    rng = random.Random(11)
    reads: Counter[int] = Counter()
    for _ in range(20):
        log = Log(_history(rng, 20_000, lost_max=5_000))
        for wanted in rng.sample(sorted(set(log.sources)), 500):
            found, count = log.find(wanted)
            assert isinstance(found, int)
            assert log.sources[found] == wanted
            reads[count] += 1
    assert max(reads) <= READS_WITH_LOSS_MAX, sorted(reads.items())


def _history(rng: random.Random, commands: int, lost_max: int = 0) -> list[int]:
    sources: list[int] = []
    made: set[int] = set()
    decided = 0
    while decided < commands:
        if lost_max and rng.random() < 0.002:
            decided += rng.randrange(lost_max)
        chunk = list(range(decided, decided + rng.randrange(1, 20)))
        decided += len(chunk)
        sources += chunk
        made.update(chunk)
        if rng.random() < 0.01:
            sources += chunk
        if rng.random() < 0.005 and decided > 100:
            first = rng.randrange(max(0, decided - 500), decided)
            late = range(first, min(first + rng.randrange(1, 20), decided))
            sources += [each for each in late if each in made]
    return sources


@pytest.mark.parametrize(
    ("log", "wanted", "found"),
    [
        (Log([0, 1, 2, 3]), 2, 2),
        (Log([]), 0, NotFound.UNDECIDED),
        (Log([0, 1]), 2, NotFound.UNDECIDED),
        (Log([0, 1, 0, 1]), 2, NotFound.UNDECIDED),
        (Log([0, 1, 0, 1, 2]), 2, 4),
        # The jump from the late repeat of 0 goes past 4, and past the end.
        (Log([0, 1, 2, 3, 0, 4, 5]), 4, 5),
        (Log([0, 1, 2, 3, 0, 4]), 4, 5),
        (Log([0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), 5, 9),
        (Log([0, 1, 2, 3], beginning=2), 1, NotFound.TRIMMED),
        (Log([0, 1, 2, 3], beginning=2), 2, 2),
        (Log([0, 1, 2, 3], beginning=4), 3, NotFound.TRIMMED),
        (Log([0, 1, 2, 3], beginning=4), 4, NotFound.UNDECIDED),
        (Log([0, 1, 2, 1, 2, 3], beginning=3), 1, 3),
        (Log([0, 1, 2, 1, 2, 3], beginning=3), 2, 4),
        (Log([0, 1, 2, 0, 3], beginning=3), 1, NotFound.TRIMMED),
        # The command log has lost 2; 100 to 199; 2 to 99.
        (Log([0, 1, 3, 4]), 2, NotFound.SKIPPED),
        (Log([*range(100), *range(200, 300)]), 250, 150),
        (Log([*range(100), *range(200, 300)]), 150, NotFound.SKIPPED),
        (Log([*range(100), *range(200, 300)]), 300, NotFound.UNDECIDED),
        (Log([0, 1, *range(100, 110)]), 109, 11),
        (Log([0, 1, *range(100, 110)]), 111, NotFound.UNDECIDED),
        (Log([0, 1, *range(100, 110)], beginning=4), 101, NotFound.TRIMMED),
        (Log([0, 1, *range(100, 110)], beginning=4), 102, 4),
        (Log([*range(100), 3, 4, *range(300, 400), 5, 6, *range(400, 500)]), 50, 50),
        (Log([*range(100), 3, 4, *range(300, 400), 5, 6, *range(400, 500)]), 320, 122),
    ],
)
def test_edge_cases(log: Log, wanted: int, found: int | NotFound) -> None:
    assert log.find(wanted)[0] == found
