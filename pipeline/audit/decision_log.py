"""Digests of the first decision on each command of a partition, to check repeats against.

Memory: 16 bytes per command, a digest of the decision record and its time. That is 160 MB for 10M commands of one
purchase each; commands of 200 purchases need a two-hundredth of that.
"""

from array import array
from hashlib import blake2b


def digest(value: bytes) -> int:
    """A 64-bit digest; never 0."""
    return int.from_bytes(blake2b(value, digest_size=8).digest()) or 1


class FirstDecisions:
    """Digest and time of first decisions, by command offset; `add` takes ascending offsets only."""

    def __init__(self) -> None:
        self._digests = array("Q")
        self._times = array("q")

    def __len__(self) -> int:
        """One more than the last command's offset."""
        return len(self._digests)

    def add(self, offset: int, value: bytes, time_ms: int) -> None:
        missing = offset - len(self._digests)
        self._digests.extend([0] * missing)
        self._times.extend([self._times[-1] if self._times else 0] * missing)
        self._digests.append(digest(value))
        self._times.append(time_ms)

    def digest(self, offset: int) -> int:
        """The digest of the first decision; 0 for a command without one."""
        return self._digests[offset] if 0 <= offset < len(self._digests) else 0

    def time_ms(self, offset: int) -> int:
        """The time of the first decision; for a command without one, the time of the previous decision."""
        return self._times[offset]
