"""Which follower has which partitions, and requests to the other followers.

Faust supplies only the owner of each partition, as part of the assignment. Its own routing from keys to owners does not
know how our keys are partitioned; `partition_of` does.
"""

import logging
from collections.abc import Mapping

import aiohttp
import faust
import orjson

from pipeline.followers.tables.inspection import OwnerResponse

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 1.0
ANSWER_BYTES_MAX = 16_000_000


class Owners:
    """The followers of one topic's partitions, by the address of their pages."""

    def __init__(self, app: faust.App, topic: str) -> None:
        self._app = app
        self._topic = topic

    @property
    def own(self) -> str:
        """The address of this process."""
        return str(self._app.conf.canonical_url).rstrip("/")

    def others(self) -> dict[str, frozenset[int]]:
        """By address, the partitions of every other follower that has any."""
        metadata: Mapping[str, Mapping[str, list[int]]] = self._app.router.external_topics_metadata()
        found = {url.rstrip("/"): frozenset(topics.get(self._topic, [])) for url, topics in metadata.items()}
        return {url: partitions for url, partitions in found.items() if partitions and url != self.own}

    def other_with(self, partition: int) -> str | None:
        """The address of the other follower that has this partition, None if there is none."""
        return next((url for url, partitions in self.others().items() if partition in partitions), None)

    async def fetch(self, url: str, path: str) -> OwnerResponse | None:
        """That follower's answer from its own rows; None without a valid answer within `ANSWER_TIMEOUT_S`."""
        # A follower never forwards a local request, so followers that disagree about owners cannot form a loop.
        parameters = {"local": "1", "format": "json"}
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        try:
            async with self._app.http_client.get(
                url + path, params=parameters, timeout=timeout, allow_redirects=False
            ) as response:
                document = orjson.loads(await _body(response))
        except (aiohttp.ClientError, TimeoutError, ValueError) as fault:
            logger.warning("%s%s: %r", url, path, fault)
            return None
        return OwnerResponse(response.status, document) if isinstance(document, dict) else None


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > ANSWER_BYTES_MAX:
            raise ValueError(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)
