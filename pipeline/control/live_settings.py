"""The live settings of this process: which values are in force, who set them and why.

The records of the control topic are above what the process started with; an unset setting returns to that. A record is
checked with the model of the settings, together with all others in force, by its writer and again by every reader: the
writer may be of another version.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.domain.times import rfc3339
from pipeline.errors import OperatorError
from pipeline.kafka.records import LogRecord
from pipeline.messages.control import BadControlRecord
from pipeline.messages.settings import Scalar, SettingChange, decode_setting
from pipeline.process.configuration import reason_of, source_of, unknown
from pipeline.settings import LIVE_SETTINGS, InForce, Settings

_LIMITS = ("le", "lt", "ge", "gt", "max_length", "min_length", "pattern", "expected")
"""Names in a pydantic error for the limit that was exceeded."""

logger = logging.getLogger(__name__)


class SettingRefused(OperatorError):
    """A change that is not possible. The message names the setting."""


class UnknownSetting(SettingRefused):
    """There is no setting of this name."""


class NotLive(SettingRefused):
    """The setting is read at the start only."""


class InvalidValue(SettingRefused):
    """The model of the settings refuses the value; `limit` is the limit that it exceeds, if it is about one."""

    def __init__(self, reason: str, limit: int | str | None) -> None:
        super().__init__(reason)
        self.limit = limit


class _Record(NamedTuple):
    offset: int
    change: SettingChange


class LiveSettings:
    """Applies the records of the control topic to the settings in force, and answers what is in force.

    `on_change` receives the new settings, for what cannot read them each time.
    """

    def __init__(self, in_force: InForce, on_change: Callable[[Settings], None] = lambda _: None) -> None:
        self._in_force = in_force
        self._on_change = on_change
        self._applied: dict[str, _Record] = {}
        """The newest applied record of each setting, also of those that were unset."""
        self._waiting: dict[str, _Record] = {}
        """The newest record of each setting that was refused, perhaps only because of the values of others.

        It is tried again after each change: compaction deletes older records, and what is in force must not depend on
        whether a process has read them.
        """

    @property
    def version(self) -> int:
        """The offset of the newest applied record; -1 for none."""
        return self._in_force.version

    def take(self, record: LogRecord) -> None:
        """Apply a record of the control topic if it changes a setting. Raises BadControlRecord."""
        change = decode_setting(record.key, record.value)
        if change is None:
            return
        found = _Record(record.offset, change)
        try:
            self._apply(found)
        except SettingRefused as refusal:
            if change.name in LIVE_SETTINGS:
                self._waiting[change.name] = found
            raise BadControlRecord(str(refusal)) from None
        self._waiting.pop(change.name, None)
        self._apply_waiting()
        self._in_force.version = record.offset
        self._on_change(self._in_force.settings)

    def set_to(self, name: str, value: Scalar, by: str, reason: str, at_ms: int) -> SettingChange:
        """The change that gives this setting this value, as the model has it: "5" is 5. Raises SettingRefused."""
        settings = self._settings_with(SettingChange(name, True, value, by, reason, at_ms))
        return SettingChange(name, True, _plain(settings, name), by, reason, at_ms)

    def unset(self, name: str, by: str, reason: str, at_ms: int) -> SettingChange:
        """The change that returns this setting to its base. Raises SettingRefused."""
        change = SettingChange(name, False, None, by, reason, at_ms)
        self._settings_with(change)
        return change

    def describe(self, name: str) -> dict[str, Any]:
        """The setting in JSON: what is in force, from which source, and its newest change. Raises SettingRefused."""
        _require_live(name)
        applied = self._applied.get(name)
        base = self._in_force.base
        return {
            "name": name,
            "value": _plain(self._in_force.settings, name),
            "base": _plain(base, name),
            "source": "control" if applied and applied.change.is_set else source_of(base, name),
            "change": None if applied is None else describe_change(*applied),
        }

    def describe_all(self) -> dict[str, Any]:
        """{"version", "settings": what `describe` says of each, by name}."""
        return {
            "version": self.version,
            "settings": [self.describe(name) for name in sorted(LIVE_SETTINGS)],
        }

    def _apply(self, record: _Record) -> None:
        """Raises SettingRefused."""
        self._in_force.settings = self._settings_with(record.change)
        self._applied[record.change.name] = record
        logger.info("%s", describe_line(*record))

    def _apply_waiting(self) -> None:
        """Apply the refused records that are valid with what is in force now."""
        moved = True
        while moved:
            moved = False
            for name, record in list(self._waiting.items()):
                try:
                    self._apply(record)
                except SettingRefused:
                    continue
                del self._waiting[name]
                moved = True

    def _settings_with(self, change: SettingChange) -> Settings:
        """The settings in force after this change. Raises SettingRefused."""
        _require_live(change.name)
        values = {name: record.change.value for name, record in self._applied.items() if record.change.is_set}
        values.pop(change.name, None)
        if change.is_set:
            values[change.name] = change.value
        try:
            return self._in_force.base.with_values(values)
        except ValidationError as error:
            first = error.errors()[0]
            reason = reason_of(first) if first["loc"] else first["msg"]
            raise InvalidValue(f"{change.name}: {reason}", _limit(first)) from None


def describe_change(offset: int, change: SettingChange) -> dict[str, Any]:
    """Who made a change, when, why, and its offset in the control topic."""
    return {"by": change.by, "reason": change.reason, "at": rfc3339(change.at_ms), "offset": offset}


def describe_line(offset: int, change: SettingChange) -> str:
    """A change in one line, for people."""
    done = f"set to {change.value!r}" if change.is_set else "unset"
    return f"{change.name} {done} by {change.by} at offset {offset}: {change.reason}"


def _require_live(name: str) -> None:
    """Raises UnknownSetting and NotLive."""
    if name not in Settings.model_fields:
        raise UnknownSetting(f"{name}: {unknown(name)}")
    if name not in LIVE_SETTINGS:
        raise NotLive(f"{name}: read at the start only; set SECKILL_{name.upper()} and restart")


def _plain(settings: Settings, name: str) -> Any:
    """The value of this setting in JSON."""
    return settings.model_dump(mode="json", include={name})[name]


def _limit(error: ErrorDetails) -> int | str | None:
    context = error.get("ctx", {})
    limit = next((context[name] for name in _LIMITS if name in context), None)
    return limit if limit is None or isinstance(limit, int) else str(limit)
