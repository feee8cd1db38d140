"""How Redis is reached."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from pydantic import Field, field_validator

from pipeline.credentials import Secret, SecretFileSetting, secret_of
from pipeline.endpoints import CaFile, Tls
from pipeline.settings.tls import tls_faults
from pipeline.settings.value_types import Area, Milliseconds, OrUnset, Port

_SCHEMES = ("redis://", "rediss://", "unix://")
_IN_QUERY = {"username", "password"}
_DATABASE = re.compile(r"(/[0-9]*)?", re.ASCII)


class Redis(Area):
    """Redis"""

    redis_url: Annotated[OrUnset[str], Field(repr=False)] = None
    """redis://host:port/database, or rediss:// or unix:// as redis-py accepts them."""
    redis_port: Port = 6379
    """The port of the Redis that `seckill up` starts."""
    redis_user: OrUnset[str] = None
    """The ACL user. User and password may be in `redis_url` instead, percent-encoded."""
    redis_password: OrUnset[Secret] = None
    """The password of `redis_user`, or of Redis's default user."""
    redis_password_file: OrUnset[SecretFileSetting] = None
    """A file with `redis_password`."""
    redis_ca_file: OrUnset[CaFile] = None
    """Authorities (PEM) that Redis's certificate may come from, in addition to those of the operating system."""
    redis_certificate_file: OrUnset[Path] = None
    """The client's certificate (PEM), for a Redis that asks for one."""
    redis_key_file: OrUnset[Path] = None
    """Its unencrypted key (PEM). If unset, `redis_certificate_file` contains it."""
    redis_check_hostname: bool = True
    """Off for a Redis whose certificate does not contain the name in `redis_url`."""
    redis_timeout_ms: Milliseconds = 5_000
    """A call to Redis that takes longer counts as failed."""

    @field_validator("redis_url")
    @classmethod
    def _has_scheme(cls, value: str | None) -> str | None:
        if value is not None:
            if not value.startswith(_SCHEMES):
                raise ValueError(f"does not begin with one of {', '.join(_SCHEMES)}")
            if not _is_redis_address(value):
                raise ValueError(
                    "not redis://[user:password@]host[:port][/number]; percent-encode special characters"
                )
            if not _IN_QUERY.isdisjoint(parse_qs(urlsplit(value).query)):
                # redis-py would accept them there, but a query is printed.
                raise ValueError("user and password belong before the host")
        return value

    def redis(self) -> str:
        """A URL for redis-py with everything that a client needs, the password included: never print it."""
        address, tls = self._redis_address(), self._redis_tls()
        password = secret_of(self.redis_password, self.redis_password_file)
        if password is not None:
            user = quote(self.redis_user or "", safe="")
            secret = quote(password.get_secret_value(), safe="")
            address = address.replace("://", f"://{user}:{secret}@", 1)
        options = {
            "ssl_ca_certs": tls.ca_file,
            "ssl_certfile": tls.certificate_file,
            "ssl_keyfile": tls.key_file or tls.certificate_file,
            "ssl_check_hostname": None if tls.checks_hostname else False,
        }
        added = urlencode({name: str(value) for name, value in options.items() if value is not None})
        return f"{address}{'&' if '?' in address else '?'}{added}" if added else address

    def _redis_address(self) -> str:
        return self.redis_url or f"redis://127.0.0.1:{self.redis_port}/0"

    def _redis_tls(self) -> Tls:
        return Tls(
            self.redis_ca_file, self.redis_certificate_file, self.redis_key_file, self.redis_check_hostname
        )


def redis_faults(settings: Redis) -> Iterator[str]:
    """What does not fit together."""
    url = urlsplit(settings._redis_address())
    password = secret_of(settings.redis_password, settings.redis_password_file)
    if settings.redis_user is not None and password is None:
        yield "SECKILL_REDIS_USER: needs SECKILL_REDIS_PASSWORD or SECKILL_REDIS_PASSWORD_FILE"
    if password is not None and "@" in url.netloc:
        yield "SECKILL_REDIS_PASSWORD: SECKILL_REDIS_URL names a user or password, too; set one of them"
    yield from tls_faults(
        "REDIS",
        settings._redis_tls(),
        None if url.scheme == "rediss" else "a SECKILL_REDIS_URL with rediss://",
    )


def _is_redis_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return False
    is_socket = parts.scheme == "unix"
    return not parts.fragment and (is_socket or _DATABASE.fullmatch(parts.path) is not None)
