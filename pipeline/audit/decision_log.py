"""The first decision on each command of a partition, as a digest: so that repeats can be held against it.

Kept for each command: 16 bytes, a digest of the decision record and its time. 160 MB for 10M commands of one purchase
each; commands of 200 purchases need a two-hundredth of that.
"""

from array import array
from hashlib import blake2b


def digest(value: bytes) -> int:
    """64 bits that tell this value from others; never 0."""
    return int.from_bytes(blake2b(value, digest_size=8).digest()) or 1


class FirstDecisions:
    """By offset of the command; rising offsets only."""

    def __init__(self) -> None:
        self._digests = array("Q")
        self._times = array("q")

    def __len__(self) -> int:
        """One more than the offset of the last command."""
        return len(self._digests)

    def add(self, offset: int, value: bytes, time_ms: int) -> None:
        missing = offset - len(self._digests)
        self._digests.extend([0] * missing)
        self._times.extend([self._times[-1] if self._times else 0] * missing)
        self._digests.append(digest(value))
        self._times.append(time_ms)

    def digest(self, offset: int) -> int:
        """0 for a command without a decision."""
        return self._digests[offset] if 0 <= offset < len(self._digests) else 0

    def time_ms(self, offset: int) -> int:
        """The time of this decision; without one, that of the one before."""
        return self._times[offset]
