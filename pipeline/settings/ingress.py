"""What an ingress does with its clients, and what it remembers."""

from typing import Annotated

from pydantic import Field

from pipeline.settings.value_types import Area, Limit, Live, Milliseconds


class Ingress(Area):
    """Ingress"""

    connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Open connections of the public listener; any further one gets a 503."""
    admin_connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """The same for the administration listener."""
    header_timeout_ms: Milliseconds = 15_000
    """A connection is closed if its first request has not arrived within this time."""
    keep_alive_timeout_ms: Milliseconds = 75_000
    """An idle connection is closed after this time; a proxy in front should close its own earlier."""
    body_bytes_max: Limit = 16_384
    """A larger body of a request gets a 413."""
    json_depth_max: Limit = 16
    """A body that is nested deeper gets a 400."""
    purchases_per_record_max: Annotated[int, Field(ge=1, le=1_000)] = 1_000
    """Purchases of one product that share a record of the command log."""
    unknown_product_records_per_second_max: Annotated[int, Field(ge=1, le=1_000_000), Live()] = 200
    """Log records for products not known to be opened; further purchases of such products are refused."""
    requests_in_flight_max: Annotated[Limit, Live()] = 20_000
    """Requests that a listener handles at a time; any further one gets a 429."""
    purchases_waiting_max: Annotated[Limit, Live()] = 20_000
    """Purchases that wait for the log's acknowledgement; any further one gets a 429."""
    waiters_max: Annotated[Limit, Live()] = 20_000
    """Synchronous purchases and long polls that wait for a decision; any further one gets a 429."""
    event_streams_max: Annotated[Limit, Live()] = 2_000
    """Open event streams; any further one gets a 429."""
    send_timeout_ms: Annotated[int, Field(ge=100, le=60_000)] = 4_500
    """A purchase that the log has not acknowledged after this time gets a 503."""
    gather_ms_max: Annotated[int, Field(ge=0, le=50), Live()] = 40
    """Purchases wait at most this long for others, and never longer than the previous record took to be answered."""
    wait_timeout_ms: Annotated[int, Field(ge=1, le=30_000), Live()] = 5_000
    """A synchronous purchase that is not decided after this time gets a 202 with its receipt."""
    window_margin_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 2_000
    """This close to the start or end of a sale, purchases go into the log even if the sale seems not to be open."""
    poll_wait_ms_max: Annotated[int, Field(ge=1, le=30_000)] = 30_000
    """The longest long poll."""
    results_cache_bytes_max: Annotated[int, Field(ge=1_048_576, le=64 * 1024**3)] = 64 * 1024**2
    """Each ingress keeps the latest decisions in memory; older ones are read from the decision log, and up to an
    eighth of this limit is kept of those.

    With a very small cache, a decision that arrives before the acknowledgement of its command must be looked up."""
    lookups_max: Limit = 32
    """How many decisions may wait to be looked up in the log, one after the other; further polls get a 503."""
    redis_connections_max: Annotated[int, Field(ge=1, le=10_000)] = 64
    """For reads of stock and buyers; a read that finds all of them in use waits up to `redis_timeout_ms`."""
    retry_after_s: Annotated[int, Field(ge=1, le=3_600), Live()] = 1
    """`Retry-After` of a 429 or 503 for which no better estimate is known."""
    busy_message: Annotated[str, Field(max_length=500), Live()] = "系统繁忙，请稍后重试"
    """What refused buyers read when the system is busy."""
