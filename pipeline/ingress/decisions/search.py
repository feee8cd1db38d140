"""Where in the decision log the decision on a command stands. Pure: somebody else reads.

The decision on the command at offset s stands at a position p >= s: each command before it has one decision before it,
and now and then there is a repeat. So s is the first place to look, and the difference between what is wanted and what
is found there is the way to the next one. That finds it at once where nothing was repeated, and in a few steps where
little was. It can miss: a decider that had lost its partition may have written old decisions again, late. Then what is
left between the places that are known to be too early and too late is read from its beginning on.

Where the command log has lost records, each decision behind them stands as much earlier, perhaps at p < s. That is
searched only where the one on s was not found, but one on a later command was seen: on the way, or with one more look,
at the last position before s. A late repeat at just that place hides it; then it is called undecided.

A repeat is the same to the byte, so whichever is found is the answer.
"""

import sys
from collections.abc import Generator
from enum import Enum
from typing import NamedTuple


class End(NamedTuple):
    """Nothing stands at this position yet: the log ends at `end`."""

    end: int


class Trimmed(NamedTuple):
    """This position was deleted by retention: the log begins at `beginning`."""

    beginning: int


class NotFound(Enum):
    UNDECIDED = "the log ends without a decision on this command"
    TRIMMED = "the decision was deleted with the beginning of the log"
    SKIPPED = "the log goes on after this command without a decision on it"


class _Log:
    """What is known of the log, also if the command log has lost records."""

    beginning = 0
    end = sys.maxsize
    later = sys.maxsize
    """The lowest position at which a later decision was seen; so the first on the wanted command stands before that."""
    later_source = 0

    def note_later(self, position: int, source: int) -> None:
        if position < self.later:
            self.later, self.later_source = position, source


_Searching = Generator[int, int | End | Trimmed, int | NotFound]


def search(wanted: int) -> _Searching:
    """Yields positions, and is sent the source offset of the record that stands there.

    Returns the position of a decision on the command at offset `wanted`.
    """
    log = _Log()
    found = yield from _search_behind(wanted, log)
    last = min(wanted, log.end) - 1
    if found is NotFound.UNDECIDED and last >= log.beginning:
        seen = yield last
        if seen == wanted:
            return last
        if isinstance(seen, int) and seen > wanted:
            log.note_later(last, seen)
    if isinstance(found, NotFound) and log.later < sys.maxsize:
        return (yield from _search_before(wanted, log))
    return found


def _search_behind(wanted: int, log: _Log) -> _Searching:
    """The search where the decision stands at `wanted` or above."""
    # It stands at `low` or above, and below `high`, if it is in the log at all.
    low, high, position = wanted, sys.maxsize, wanted
    is_jumping, is_empty = True, True
    while low < high:
        seen = yield position
        if isinstance(seen, Trimmed):
            log.beginning = seen.beginning
            low = position = max(low, seen.beginning)
            continue
        if isinstance(seen, End):
            log.end, high, is_jumping = seen.end, min(high, seen.end), False
        elif seen == wanted:
            return position
        else:
            is_empty = False
            there = position + wanted - seen
            if seen > wanted:
                # All decisions between the two stand between the two, each of them at least once.
                log.note_later(position, seen)
                high = there + 1
            elif not is_jumping:
                high = position
            elif position == low:
                low += 1
            is_jumping = is_jumping and low <= there < high
        position = there if is_jumping else high - 1
    is_trimmed = log.beginning > 0
    if log.later < sys.maxsize:
        return NotFound.TRIMMED if is_trimmed else NotFound.SKIPPED
    # Where all was deleted nothing tells whether it was decided; but it was, unless as much had been repeated.
    return NotFound.TRIMMED if is_trimmed and is_empty else NotFound.UNDECIDED


def _search_before(wanted: int, log: _Log) -> _Searching:
    """The search before a later decision, down to the beginning of the log: by jumps, and every other time by halves.

    Where only records that are too early are left below the later decision, one of them is a repeat; then it steps back
    from there until it is before that repeat.
    """
    low, high = log.beginning, log.later
    # What was seen from `low` to `early` is too early, or a repeat.
    early, position, is_jumping = low, log.later + wanted - log.later_source, False
    if not low <= position < high:
        position = (low + high) // 2
    while low <= position < high:
        seen = yield position
        if seen == wanted:
            return position
        is_stepping_back = early >= high
        if isinstance(seen, Trimmed):
            low = max(low, seen.beginning)
            if not is_stepping_back:
                early = position = low
            continue
        if isinstance(seen, End):
            break
        if seen > wanted:
            high, early = position, low if is_stepping_back else early
        elif not is_stepping_back:
            early = position + 1
        there = position + wanted - seen
        if early >= high:
            position = min(position, high) - 1
        elif is_jumping and early <= there < high:
            position, is_jumping = there, False
        else:
            position, is_jumping = (early + high) // 2, True
    return NotFound.TRIMMED if low > 0 else NotFound.SKIPPED
