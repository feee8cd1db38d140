"""Issues and checks purchase tickets with the secrets of the settings."""

from pipeline.domain.tickets import sign_ticket, ticket_fault
from pipeline.ingress.access.keys import secret_file
from pipeline.ingress.errors import TicketRefused
from pipeline.process.watched_file import WatchedFile
from pipeline.settings import Settings, secrets_in


class Tickets:
    def __init__(self, settings: Settings) -> None:
        self._lifetime_ms = settings.ticket_lifetime_ms
        self.file = secret_file("ticket_secret_file", settings.ticket_secret_file)
        self._fixed: tuple[bytes, ...] = ()
        if settings.ticket_secret is not None:
            self._fixed = secrets_in(settings.ticket_secret.get_secret_value())

    @property
    def files(self) -> list[WatchedFile[tuple[bytes, ...]]]:
        return [] if self.file is None else [self.file]

    def issue(self, product_id: str, user_id: str, now_ms: int) -> tuple[str, int]:
        """A ticket, and when it expires in Unix time, ms."""
        expires_ms = now_ms + self._lifetime_ms
        return sign_ticket(self._secrets()[0], product_id, user_id, expires_ms), expires_ms

    def check(self, ticket: str | None, product_id: str, user_id: str, now_ms: int) -> None:
        """Raises TicketRefused unless this user may buy this product with the ticket."""
        if (fault := ticket_fault(self._secrets(), ticket, product_id, user_id, now_ms)) is not None:
            raise TicketRefused(fault)

    def _secrets(self) -> tuple[bytes, ...]:
        return self._fixed if self.file is None else self.file.content
