"""How long to wait between retries. Pure: the caller sleeps."""


class Backoff:
    """Pauses that double from `ms_min` to `ms_max`; `reset` starts over at `ms_min`."""

    def __init__(self, ms_min: int, ms_max: int) -> None:
        self._ms_min = ms_min
        self._ms_max = ms_max
        self._next_ms = ms_min

    def reset(self) -> None:
        """Call this after a success."""
        self._next_ms = self._ms_min

    def pause_ms(self) -> int:
        """The pause before the next try, in milliseconds; each call doubles the next one."""
        pause_ms, self._next_ms = self._next_ms, min(2 * self._next_ms, self._ms_max)
        return pause_ms
