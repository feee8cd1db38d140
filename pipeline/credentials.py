"""Secrets in the settings: from the environment or a file, and never printed."""

from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    InstanceOf,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
)

SECRET_BYTES_MAX = 65_536
"""A wrong path, such as that of a log, must not fill the memory."""

Secret = Annotated[SecretStr, Field(min_length=1)]
"""A secret in the environment. It prints as asterisks."""


class SecretFile:
    """A file that contains a secret, as read when the settings were loaded. It prints as its path."""

    def __init__(self, path: Path, secret: SecretStr) -> None:
        self.path = path
        self.secret = secret

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"SecretFile({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretFile) and (self.path, self.secret) == (other.path, other.secret)

    def __hash__(self) -> int:
        return hash(self.path)


def secret_of(secret: SecretStr | None, file: SecretFile | None) -> SecretStr | None:
    """The secret from the one of its two settings that is set; None if neither is."""
    return secret if file is None else file.secret


def _read(value: object) -> object:
    """The content of the file, without line breaks at its end. Raises ValueError."""
    if not isinstance(value, str | Path):
        return value
    path = Path(value)
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(content) > SECRET_BYTES_MAX:
        raise ValueError(f"has more than {SECRET_BYTES_MAX} bytes")
    try:
        secret = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    if not secret:
        raise ValueError("is empty")
    return SecretFile(path, SecretStr(secret))


def _is_only_source(value: SecretFile, info: ValidationInfo) -> SecretFile:
    name = (info.field_name or "").removesuffix("_file")
    if info.data.get(name) is not None:
        raise ValueError(f"SECKILL_{name.upper()} is set, too; set only one of them")
    return value


SecretFileSetting = Annotated[
    InstanceOf[SecretFile],
    BeforeValidator(_read),
    AfterValidator(_is_only_source),
    WithJsonSchema({"type": "string", "format": "path"}),
]
"""For a setting `<name>_file`, which excludes the setting `<name>`. It must follow that one in the model."""
