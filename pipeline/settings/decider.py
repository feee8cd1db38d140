"""How commands are decided, and what follows the decisions."""

from typing import Annotated

from pydantic import Field

from pipeline.settings.value_types import Area, Limit, Live, Milliseconds


class Decider(Area):
    """Deciders and followers"""

    chunk_purchases_max: Annotated[int, Field(ge=1, le=2_000)] = 2_000
    """One Lua call decides at most this many: during the call Redis serves no other client."""
    chunk_pace_ms: Annotated[int, Field(ge=0, le=1_000), Live()] = 2
    """Minimum time between two chunks of a busy partition, so that they are not tiny."""
    decider_buffer_records_max: Limit = 8_192
    """Commands that a decider buffers; the stream waits while the buffer is full."""
    decider_buffer_bytes_max: Annotated[int, Field(ge=1_048_576)] = 16_777_216
    """Bytes of commands that a decider buffers."""
    idle_look_ms: Milliseconds = 1_000
    """How often an idle decider checks that the cursor in Redis has not moved."""
    backoff_ms_min: Milliseconds = 50
    """The first pause after a fault of Kafka or Redis; it doubles with each further one."""
    backoff_ms_max: Milliseconds = 2_000
    """The longest such pause."""
    breaker_failure_threshold: Annotated[int, Field(ge=1, le=1_000), Live()] = 10
    """The breaker opens after this many consecutive failures of Redis or the producer."""
    breaker_recovery_timeout_ms: Annotated[Milliseconds, Live()] = 60_000
    """An open breaker lets one chunk through as soon as Redis and Kafka answer, and after this time at the latest."""
    slow_chunk_ms: Annotated[Milliseconds, Live()] = 1_000
    """A chunk that takes longer is reported as slow, but is not a failure."""
    orders_pace_ms: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Minimum time between two transactions of a partition's orders, because each costs as much as 4,000 orders.

    The first after a quiet period starts at once, and no buyer waits for any."""
    progress_timeout_ms: Annotated[int, Field(ge=20_000, le=3_600_000)] = 30_000
    """A worker or follower exits if records of a partition wait this long without progress.

    Time in which Redis or Kafka does not answer does not count."""
    stop_deadline_ms: Milliseconds = 5_000
    """A worker that is still running this long after a request to stop exits."""
