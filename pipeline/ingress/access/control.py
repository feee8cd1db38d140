"""Access control of one process: what the settings require, and the files that it depends on."""

from typing import Any

from pipeline.domain.claims import ClaimRules
from pipeline.ingress.access.keys import TokenKeys
from pipeline.ingress.access.tickets import Tickets
from pipeline.ingress.access.tokens import Tokens
from pipeline.process.watched_file import FileWatch, WatchedFile
from pipeline.settings import Settings


class AccessControl:
    """`tokens` and `tickets` are None if they are not required. Start it before the first use."""

    def __init__(self, settings: Settings) -> None:
        self.tokens: Tokens | None = None
        self.tickets: Tickets | None = None
        files: list[WatchedFile[Any]] = []
        if settings.tokens_required:
            keys = TokenKeys(settings)
            rules = ClaimRules(
                settings.token_leeway_ms / 1_000, settings.token_issuer, settings.token_audience
            )
            self.tokens = Tokens(keys, rules, settings.tokens_cached_max)
            files += keys.files
        if settings.tickets_required:
            self.tickets = Tickets(settings)
            files += self.tickets.files
        self._watch = FileWatch(files)

    async def start(self) -> None:
        """Read the key files, and watch them. Raises UnusableFile."""
        await self._watch.start()

    async def stop(self) -> None:
        await self._watch.stop()

    @property
    def is_alive(self) -> bool:
        """Whether changes of the key files are still noticed."""
        return self._watch.is_alive

    @property
    def faults(self) -> list[str]:
        """Why the current content of a key file is not in use, one line per file."""
        return self._watch.faults
