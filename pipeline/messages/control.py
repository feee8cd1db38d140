"""What the records of the control topic have in common: a JSON object with a type. Each type has a file of its own."""

from typing import Any

import orjson

from pipeline.errors import InvalidRecord


class BadControlRecord(InvalidRecord):
    """An unreadable record of the control topic; readers skip it. The message names the field."""


def control_document(value: bytes | None) -> dict[str, Any] | None:
    """The JSON object in a record of the control topic, whose `type` is a string; None for a tombstone.

    Raises BadControlRecord.
    """
    if value is None:
        return None
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        raise BadControlRecord("not JSON") from None
    if type(document) is not dict or type(document.get("type")) is not str:
        raise BadControlRecord("not a JSON object with a type")
    return document
