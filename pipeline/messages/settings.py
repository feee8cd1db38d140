"""Changes of live settings, records of the control topic. Whether a value is valid is for the model of the settings."""

import re
from typing import Any, Final, NamedTuple

import orjson

from pipeline.messages.control import BadControlRecord, control_document
from pipeline.messages.fields import BY_LENGTH_MAX, LINE, REASON_LENGTH_MAX, TIME_MS_MAX, whole_number

VALUE_LENGTH_MAX = 1_000
"""Of a value that is a string, in characters."""
SETTING_NAME: Final = re.compile("[a-z][a-z0-9_]{0,99}", re.ASCII)
KEY_PREFIX: Final = b"setting:"

Scalar = str | int | float | bool | None


class SettingChange(NamedTuple):
    """`by` set or unset a setting at `at_ms` (wall clock), for a `reason`. `value` is also None if it was unset."""

    name: str
    is_set: bool
    value: Scalar
    by: str
    reason: str
    at_ms: int


def setting_key(name: str) -> bytes:
    """The key of the records of this setting in the control topic."""
    return KEY_PREFIX + name.encode()


def encode_setting(change: SettingChange) -> tuple[bytes, bytes]:
    """Key and value of the record in the control topic."""
    name, is_set, value, by, reason, at_ms = change
    document: dict[str, Any] = {"type": "setting" if is_set else "unset", "name": name}
    if is_set:
        document["value"] = value
    return setting_key(name), orjson.dumps({**document, "by": by, "reason": reason, "at_ms": at_ms})


def decode_setting(key: bytes | None, value: bytes | None) -> SettingChange | None:
    """The change in a record of the control topic; None for a record of another type. Raises BadControlRecord.

    A tombstone is no way to unset a setting: it says neither who nor why.
    """
    document = control_document(value)
    if document is None:
        if key is not None and key.startswith(KEY_PREFIX):
            raise BadControlRecord(
                "a record without a value; a setting is unset by a record that says who and why"
            )
        return None
    if document["type"] not in ("setting", "unset"):
        return None
    is_set = document["type"] == "setting"
    name = document.get("name")
    if type(name) is not str or not SETTING_NAME.fullmatch(name):
        raise BadControlRecord("name: not the name of a setting")
    if key != setting_key(name):
        raise BadControlRecord(f"key: not setting:{name}")
    return SettingChange(
        name,
        is_set,
        _scalar(document) if is_set else None,
        _text(document, "by", BY_LENGTH_MAX),
        _text(document, "reason", REASON_LENGTH_MAX),
        whole_number(document, "at_ms", 0, TIME_MS_MAX, BadControlRecord),
    )


def _scalar(document: dict[str, Any]) -> Scalar:
    if "value" not in document:
        raise BadControlRecord("value: missing")
    value: Any = document["value"]
    if value is not None and type(value) not in (str, int, float, bool):
        raise BadControlRecord("value: not a string, a number, true, false or null")
    if type(value) is str and len(value) > VALUE_LENGTH_MAX:
        raise BadControlRecord(f"value: longer than {VALUE_LENGTH_MAX} characters")
    return value  # type: ignore[no-any-return]


def _text(document: dict[str, Any], name: str, length_max: int) -> str:
    text = document.get(name)
    if type(text) is not str or len(text) > length_max or not LINE.fullmatch(text):
        raise BadControlRecord(f"{name}: not a line of 1 to {length_max} characters")
    return text
