"""The search for a decision in the decision log, over random logs as the protocol allows them."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingress.decision_search import End, NotFound, Trimmed, search

LOOKUPS = 60_000
READS_MAX = 16
"""Of any of these lookups, in logs as crashes and zombies here and there leave them."""


class Log:
    """The source offsets of a decision log, of which the beginning was deleted."""

    def __init__(self, sources: list[int], beginning: int = 0) -> None:
        self.sources = sources
        self.beginning = beginning

    def at(self, position: int) -> int | End | Trimmed:
        if position < self.beginning:
            return Trimmed(self.beginning)
        return self.sources[position] if position < len(self.sources) else End(len(self.sources))

    def find(self, wanted: int) -> tuple[int | NotFound, int]:
        """What the search comes to, and after how many reads."""
        looking, reads = search(wanted), 1
        position = next(looking)
        try:
            while True:
                assert position >= 0
                position = looking.send(self.at(position))
                reads += 1
        except StopIteration as stop:
            return stop.value, reads

    def allowed(self, wanted: int) -> set[NotFound]:
        """What may be said of a decision that was not found."""
        if wanted in self.sources[self.beginning :] and self.sources.index(wanted) >= self.beginning:
            return set()
        if wanted in self.sources:
            # Where the log goes on with nothing but repeats, it looks as if it ended before.
            goes_on = max(self.sources[self.beginning :], default=-1) > wanted
            return {NotFound.TRIMMED} if goes_on else {NotFound.TRIMMED, NotFound.UNDECIDED}
        is_all_deleted = wanted < self.beginning == len(self.sources)
        return {NotFound.TRIMMED} if is_all_deleted else {NotFound.UNDECIDED}


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """What deciders leave: chunks in order, some of their records twice, or once more much later."""
    sources: list[int] = []
    late: list[list[int]] = []
    for size in draw(st.lists(st.integers(1, 6), max_size=25)):
        chunk = list(range(max(sources, default=-1) + 1, max(sources, default=-1) + 1 + size))
        while chunk:
            length = draw(st.integers(1, len(chunk)))
            batch, chunk = chunk[:length], chunk[length:]
            fate = draw(st.sampled_from(("once", "once", "once", "twice", "late")))
            sources += batch * 2 if fate == "twice" else batch
            if fate == "late":
                late.append(batch)
        if late and draw(st.booleans()):
            sources += late.pop(draw(st.integers(0, len(late) - 1)))
    return Log(sources, draw(st.integers(0, len(sources))) if draw(st.booleans()) else 0)


@given(logs())
def test_every_decision_is_found_and_nothing_else(log: Log) -> None:
    for wanted in range(max(log.sources, default=-1) + 5):
        found, _ = log.find(wanted)
        if isinstance(found, int):
            assert log.sources[found] == wanted
            assert found >= log.beginning
        else:
            assert found in log.allowed(wanted), wanted


@given(logs())
def test_no_place_is_read_again_and_again(log: Log) -> None:
    for wanted in range(max(log.sources, default=-1) + 5):
        _, reads = log.find(wanted)
        assert reads <= 2 * len(log.sources) + 3


@pytest.mark.parametrize("commands", [300, 20_000])
def test_few_reads_find_it_where_little_was_repeated(commands: int) -> None:
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


def _history(rng: random.Random, commands: int) -> list[int]:
    sources: list[int] = []
    decided = 0
    while decided < commands:
        chunk = list(range(decided, decided + rng.randrange(1, 20)))
        decided += len(chunk)
        sources += chunk
        if rng.random() < 0.01:
            sources += chunk
        if rng.random() < 0.005 and decided > 100:
            first = rng.randrange(max(0, decided - 500), decided)
            sources += range(first, min(first + rng.randrange(1, 20), decided))
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
        # No decider leaves this.
        (Log([0, 1, 3, 4]), 2, NotFound.SKIPPED),
    ],
)
def test_the_edges(log: Log, wanted: int, found: int | NotFound) -> None:
    assert log.find(wanted)[0] == found
