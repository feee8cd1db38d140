"""Who may do what."""

import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from pipeline.credentials import Secret, SecretFile, SecretFileSetting
from pipeline.settings.listeners import Listeners
from pipeline.settings.value_types import Area, OrUnset

SECRET_ALGORITHM = "HS256"  # noqa: S105 -- a name
"""The algorithm of tokens that are signed with the shared secret."""
KEY_ALGORITHMS = ("RS256", "ES256", "EdDSA")
"""The algorithms of tokens that are verified with a public key of the JWKS file."""
SECRET_BYTES_MIN = 32
"""RFC 7518, 3.2: a shorter secret is easier to guess than the signature."""
SECRETS_MAX = 8
"""An invalid signature is compared with each of them."""
ORIGINS_MAX = 32

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)
_CLAIM = r"^[!-~]([ -~]{0,254}[!-~])?$"


class Access(Area):
    """Who may do what"""

    tokens_required: bool = False
    """If on, every call but health and the specification needs a JSON Web Token with the scope of the call."""
    token_algorithms: str = SECRET_ALGORITHM
    """The accepted ones, separated by commas: HS256 (token secret), RS256, ES256, EdDSA (JWKS file)."""
    token_secret: OrUnset[Secret] = None
    """Up to eight secrets of at least 32 bytes, one per line. The first one signs; all of them verify."""
    token_secret_file: OrUnset[SecretFileSetting] = None
    """A file with the token secrets, reread when it changes."""
    token_jwks_file: OrUnset[Path] = None
    """A file with the issuer's public keys (RFC 7517), reread when it changes."""
    token_issuer: OrUnset[Annotated[str, Field(pattern=_CLAIM)]] = None
    """If set, the `iss` that a token must have."""
    token_audience: OrUnset[Annotated[str, Field(pattern=_CLAIM)]] = None
    """If set, a token must name it in `aud`. If unset, a token with an `aud` is refused: it is for somebody else."""
    token_leeway_ms: Annotated[int, Field(ge=0, le=60_000)] = 5_000
    """How far the issuer's clock may be off: for `exp` and `nbf`."""
    tokens_cached_max: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    """Verified tokens that an ingress remembers, of about 0.6 KB each; the least recently used is dropped first."""
    operator_token: OrUnset[Secret] = None
    """The token with which `seckill sale` signs in to the administration listener."""
    operator_token_file: OrUnset[SecretFileSetting] = None
    """A file with `operator_token`."""
    tickets_required: bool = False
    """If on, a purchase needs a ticket, which buyers get only while the sale is on."""
    ticket_secret: OrUnset[Secret] = None
    """In the form of `token_secret`, but a different secret. All ingresses need the same one."""
    ticket_secret_file: OrUnset[SecretFileSetting] = None
    """A file with the secrets of tickets, like `token_secret_file`."""
    ticket_lifetime_ms: Annotated[int, Field(ge=1_000, le=600_000)] = 60_000
    """How long a ticket is valid."""
    cors_origins: OrUnset[str] = None
    """The origins whose web pages may call the public listener, separated by commas: `https://shop.example`."""

    @field_validator("token_algorithms")
    @classmethod
    def _has_known_algorithms(cls, value: str) -> str:
        known = (SECRET_ALGORITHM, *KEY_ALGORITHMS)
        if not value or not set(value.split(",")) <= set(known):
            raise ValueError(f"must be one or more of {', '.join(known)}, separated by commas")
        return value

    @field_validator("token_secret", "ticket_secret")
    @classmethod
    def _has_long_secrets(cls, value: Secret | None) -> Secret | None:
        if value is not None:
            secrets_in(value.get_secret_value())
        return value

    @field_validator("token_secret_file", "ticket_secret_file")
    @classmethod
    def _contains_long_secrets(cls, value: SecretFile | None) -> SecretFile | None:
        if value is not None:
            secrets_in(value.secret.get_secret_value())
        return value

    @field_validator("cors_origins")
    @classmethod
    def _has_origins(cls, value: str | None) -> str | None:
        if value is not None:
            origins = value.split(",")
            if not all(map(_ORIGIN.fullmatch, origins)):
                raise ValueError(
                    "must be http[s]://host[:port][,...] in lower case, without a path; there are no wildcards"
                )
            if len(origins) > ORIGINS_MAX:
                raise ValueError(f"more than {ORIGINS_MAX} origins")
        return value

    def accepted_algorithms(self) -> tuple[str, ...]:
        return tuple(self.token_algorithms.split(","))

    def accepted_origins(self) -> tuple[str, ...]:
        return () if self.cors_origins is None else tuple(self.cors_origins.split(","))


def access_faults(access: Access, listeners: Listeners) -> Iterator[str]:
    """What does not fit together, and what would be open by mistake."""
    has_secret = access.token_secret is not None or access.token_secret_file is not None
    if access.tokens_required:
        algorithms = set(access.accepted_algorithms())
        if SECRET_ALGORITHM in algorithms and not has_secret:
            yield "SECKILL_TOKENS_REQUIRED: needs SECKILL_TOKEN_SECRET or SECKILL_TOKEN_SECRET_FILE"
        if algorithms & set(KEY_ALGORITHMS) and access.token_jwks_file is None:
            yield "SECKILL_TOKEN_ALGORITHMS: needs SECKILL_TOKEN_JWKS_FILE"
    elif not _is_loopback(listeners.admin_host):
        yield (
            "SECKILL_ADMIN_HOST: the administration listener is opened only on a loopback address (127.0.0.1, ::1)"
            " unless SECKILL_TOKENS_REQUIRED is on"
        )
    elif listeners.admin_on_public:
        yield "SECKILL_ADMIN_ON_PUBLIC: needs SECKILL_TOKENS_REQUIRED"
    if access.tickets_required and access.ticket_secret is None and access.ticket_secret_file is None:
        yield "SECKILL_TICKETS_REQUIRED: needs SECKILL_TICKET_SECRET or SECKILL_TICKET_SECRET_FILE"


def secrets_in(text: str) -> tuple[bytes, ...]:
    """The secrets in the value of a setting or in a file: one per line. Raises ValueError, without quoting any."""
    secrets = tuple(line.strip().encode() for line in text.splitlines() if line.strip())
    if not secrets or min(map(len, secrets)) < SECRET_BYTES_MIN:
        raise ValueError(
            f"each secret must have at least {SECRET_BYTES_MIN} bytes; `openssl rand -base64 32` makes one"
        )
    if len(secrets) > SECRETS_MAX:
        raise ValueError(f"more than {SECRETS_MAX} secrets")
    return secrets


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
