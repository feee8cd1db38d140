"""The headers of every record that this system writes, and the versions of the record format.

Version 2 adds the key and value of the command to a malformed decision. Version 3 adds the commands adjust, pause,
resume, extend, limits and cleanup, and to all commands but purchases a reason, an author and an idempotency key.
Versions 1 and 2 are still read.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from pipeline.errors import Fatal

FORMAT_VERSION: Final = 3

_VERSION = re.compile(rb"[0-9]{1,9}")
_KNOWN_VERSIONS = frozenset(b"%d" % version for version in range(1, FORMAT_VERSION + 1))


class NewerFormat(Fatal):
    """A record has a format version above `FORMAT_VERSION`; the message names the version and the record."""


def record_headers(origin: str) -> tuple[tuple[str, bytes], ...]:
    """The Kafka headers of every record: the format version, and `origin`, the process that wrote it."""
    return (("v", b"%d" % FORMAT_VERSION), ("origin", origin.encode()))


def refuse_newer(topic: str, partition: int, records: Iterable[Any]) -> None:
    """Raises NewerFormat if one of these aiokafka records has a format version that this process cannot read.

    A record without a version comes from another program and counts as version 1.
    """
    for record in records:
        for name, content in record.headers:
            if name == "v" and content not in _KNOWN_VERSIONS and _is_newer(content):
                raise NewerFormat(
                    f"{topic}/{partition}: the record at offset {record.offset} has format version "
                    f"{content.decode()}, this process reads up to {FORMAT_VERSION}: start a newer version of "
                    "this program"
                )


def _is_newer(version: bytes | None) -> bool:
    return version is not None and _VERSION.fullmatch(version) is not None and int(version) > FORMAT_VERSION
