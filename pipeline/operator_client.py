"""A client of the administration listener: the commands of a live sale, for the command line.

Each command has an Idempotency-Key, so it may be repeated: a repeat is never applied a second time.
"""

import asyncio
import uuid
from typing import Any

import aiohttp
import orjson

from pipeline.credentials import secret_of
from pipeline.domain.addresses import authority, local_host
from pipeline.domain.backoff import Backoff
from pipeline.errors import OperatorError, Unavailable
from pipeline.messages.commands import is_idempotency_key
from pipeline.settings import Settings

ACTIVITY_PATH = "/api/v1/seckill/activity"
STATS_PATH = "/api/v1/seckill/stats"
TRIES_MAX = 4
"""Per command: an ingress that restarts, or a log that acknowledges late, needs no operator."""
TRY_TIMEOUT_MS = 15_000
"""Longer than an ingress waits for a decision."""
RETRY_MS_MIN = 250
RETRY_MS_MAX = 4_000


class CommandFailed(OperatorError):
    """The command was refused: by the ingress, or by the decision on it. The message says why."""


class AdministrationUnavailable(Unavailable):
    """No ingress answered, or it could not finish the command in time. The message says how to repeat it."""


class NothingSent(AdministrationUnavailable):
    """The command certainly takes no effect."""


class OperatorClient:
    """Raises CommandFailed and AdministrationUnavailable."""

    def __init__(self, settings: Settings) -> None:
        self.url = f"http://{authority(local_host(settings.admin_host), settings.admin_port)}"
        token = secret_of(settings.operator_token, settings.operator_token_file)
        self._headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}

    async def command(self, call: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
        """The answer to this administration call. Without a `key` it gets a random one."""
        key = str(uuid.uuid4()) if key is None else key
        if not is_idempotency_key(key):
            raise CommandFailed("the key must be 1 to 128 visible ASCII characters")
        try:
            return await self._tried("POST", f"{ACTIVITY_PATH}/{call}", body, {"Idempotency-Key": key})
        except NothingSent:
            raise
        except AdministrationUnavailable as error:
            raise AdministrationUnavailable(
                f"{error}; the command may still take effect: repeat it with --key {key}"
            ) from None

    async def product(self, product_id: str) -> dict[str, Any]:
        """The figures of a product."""
        return await self._tried("GET", f"{STATS_PATH}/{product_id}")

    async def products(self) -> list[dict[str, Any]]:
        """The figures of all products that are not cleaned up, in the order of their ids as text."""
        products: list[dict[str, Any]] = []
        after = ""
        while True:
            page = await self._tried("GET", f"{ACTIVITY_PATH}?limit=500&after={after}")
            products += page["products"]
            if page["next"] is None:
                return products
            after = page["next"]

    async def _tried(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        backoff = Backoff(RETRY_MS_MIN, RETRY_MS_MAX)
        timeout = aiohttp.ClientTimeout(total=TRY_TIMEOUT_MS / 1_000)
        async with aiohttp.ClientSession(
            self.url, headers={**self._headers, **(headers or {})}, timeout=timeout
        ) as session:
            worst: AdministrationUnavailable = NothingSent()
            for left in reversed(range(TRIES_MAX)):
                try:
                    return await _answer(session, method, path, body)
                except AdministrationUnavailable as error:
                    # If an earlier try may have arrived, a later one that certainly did not proves nothing.
                    if isinstance(worst, NothingSent):
                        worst = error
                if left:
                    await asyncio.sleep(backoff.pause_ms() / 1_000)
        raise worst


async def _answer(
    session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any] | None
) -> dict[str, Any]:
    try:
        async with session.request(method, path, json=body) as response:
            text = await response.read()
            status = response.status
    except aiohttp.ClientConnectorError as error:
        raise NothingSent(
            f"no administration listener at {error.host}:{error.port}: {error.strerror}"
        ) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or f"no answer within {TRY_TIMEOUT_MS} ms"
        raise AdministrationUnavailable(f"the administration listener: {reason}") from None
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = None
    if type(document) is not dict:
        raise AdministrationUnavailable(f"{path} was answered with {status}, but not with a JSON object")
    if status == 200:
        return document
    detail = str(document.get("detail", f"{path} was answered with {status}"))
    if status >= 500 or status == 429:
        raise AdministrationUnavailable(detail)
    raise CommandFailed(detail)
