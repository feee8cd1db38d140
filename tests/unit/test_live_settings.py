"""Which settings are in force after which records of the control topic."""

import logging
from typing import Any, Self

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_force import in_force
from pydantic import model_validator

from pipeline.control.live_settings import (
    InvalidValue,
    LiveSettings,
    NotLive,
    SettingRefused,
    UnknownSetting,
)
from pipeline.kafka.records import LogRecord
from pipeline.messages.control import BadControlRecord
from pipeline.messages.settings import SettingChange, encode_setting
from pipeline.process.logs import set_log_level
from pipeline.settings import InForce, LogLevel, Settings


def setting(name: str, value: Any) -> SettingChange:
    return SettingChange(name, True, value, "ann", "a crowd", 1_000)


def unset(name: str) -> SettingChange:
    return SettingChange(name, False, None, "bob", "it is over", 2_000)


def record(offset: int, change: SettingChange) -> LogRecord:
    return LogRecord(offset, 0, *encode_setting(change))


def take(live: LiveSettings, offset: int, change: SettingChange) -> bool:
    """Whether the record was applied."""
    try:
        live.take(record(offset, change))
    except BadControlRecord:
        return False
    return True


def test_the_topic_is_above_the_base_and_an_unset_setting_returns_to_it() -> None:
    inside = in_force(waiters_max=7)
    changed: list[Settings] = []
    live = LiveSettings(inside, changed.append)
    assert (inside.version, live.describe("waiters_max")["source"]) == (-1, "file")
    live.take(record(3, setting("waiters_max", 9)))
    assert (inside.settings.waiters_max, inside.base.waiters_max, inside.version) == (9, 7, 3)
    assert live.describe("waiters_max") == {
        "name": "waiters_max",
        "value": 9,
        "base": 7,
        "source": "control",
        "change": {"by": "ann", "reason": "a crowd", "at": "1970-01-01T00:00:01.000Z", "offset": 3},
    }
    live.take(record(5, unset("waiters_max")))
    assert (inside.settings.waiters_max, inside.version) == (7, 5)
    described = live.describe("waiters_max")
    assert (described["value"], described["source"], described["change"]["by"]) == (7, "file", "bob")
    assert [each.waiters_max for each in changed] == [9, 7]


def test_values_are_those_of_the_model() -> None:
    live = LiveSettings(in_force())
    assert live.set_to("waiters_max", "20_000", "ann", "why", 1).value == 20_000
    assert live.set_to("log_level", "debug", "ann", "why", 1).value == "debug"
    assert live.set_to("busy_message", "5", "ann", "why", 1).value == "5"
    inside = in_force()
    LiveSettings(inside).take(record(0, setting("log_level", "debug")))
    assert inside.settings.log_level is LogLevel.DEBUG


@pytest.mark.parametrize(
    ("name", "value", "kind", "words", "limit"),
    [
        ("reddis_url", "x", UnknownSetting, "reddis_url: unknown setting; did you mean redis_url", None),
        ("public_port", 9, NotLive, "public_port: read at the start only; set SECKILL_PUBLIC_PORT and", None),
        ("waiters_max", 0, InvalidValue, r"waiters_max: .* 1 \(got 0\)", 1),
        ("retry_after_s", 3_601, InvalidValue, "retry_after_s: .* 3600", 3_600),
        ("waiters_max", "many", InvalidValue, "waiters_max: .*'many'", None),
        ("waiters_max", None, InvalidValue, "waiters_max: .*None", None),
        ("waiters_max", True, InvalidValue, "waiters_max: must not be true", None),
        ("busy_message", "x" * 501, InvalidValue, "busy_message: ", 500),
        ("log_level", "loud", InvalidValue, "log_level: ", "'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_writer_and_reader_refuse_what_the_model_refuses(
    name: str, value: Any, kind: type[SettingRefused], words: str, limit: object
) -> None:
    inside = in_force()
    live = LiveSettings(inside)
    with pytest.raises(kind, match=words) as refused:
        live.set_to(name, value, "ann", "why", 1)
    assert getattr(refused.value, "limit", None) == limit
    with pytest.raises(BadControlRecord, match=words):
        live.take(record(4, setting(name, value)))
    assert inside.settings is inside.base
    assert inside.version == -1
    if kind is not InvalidValue:
        with pytest.raises(kind):
            live.unset(name, "ann", "why", 1)
        with pytest.raises(BadControlRecord):
            live.take(record(5, unset(name)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"setting:waiters_max", None),
        (b"setting:waiters_max", b"not JSON"),
        (b"setting:waiters_max", b'{"type":"setting","name":"waiters_max","value":5}'),
        (b"setting:retry_after_s", encode_setting(setting("waiters_max", 5))[1]),
    ],
)
def test_a_record_of_another_form_changes_nothing(key: bytes, value: bytes | None) -> None:
    inside = in_force()
    live = LiveSettings(inside)
    live.take(record(0, setting("waiters_max", 9)))
    with pytest.raises(BadControlRecord):
        live.take(LogRecord(1, 0, key, value))
    assert (inside.settings.waiters_max, inside.version) == (9, 0)


def test_records_about_something_else_are_ignored() -> None:
    inside = in_force()
    live = LiveSettings(inside)
    live.take(LogRecord(1, 0, b"breaker:1", orjson.dumps({"type": "breaker"})))
    live.take(LogRecord(2, 0, b"breaker:1", None))
    assert inside.version == -1


def test_the_log_level_is_that_of_our_own_loggers_and_libraries_log_no_more_than_before() -> None:
    loggers = [logging.getLogger(name) for name in ("", "pipeline", "agents")]
    before = [each.level for each in loggers]
    try:
        for level, levels in (
            (LogLevel.DEBUG, [logging.INFO, logging.DEBUG, logging.DEBUG]),
            (LogLevel.ERROR, [logging.ERROR] * 3),
        ):
            set_log_level(level)
            assert [each.level for each in loggers] == levels
    finally:
        for each, number in zip(loggers, before, strict=True):
            each.setLevel(number)


# --- rules about several settings ---------------------------------------------------------------------------


class Ruled(Settings):
    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.waiters_max > self.requests_in_flight_max:
            raise ValueError("waiters_max is more than requests_in_flight_max")
        return self


NAMES = ("waiters_max", "requests_in_flight_max")


def ruled() -> InForce:
    return InForce(Ruled(waiters_max=5, requests_in_flight_max=10))


def values(inside: InForce) -> tuple[int, int]:
    return inside.settings.waiters_max, inside.settings.requests_in_flight_max


def test_a_value_that_does_not_fit_the_others_waits_for_them() -> None:
    inside = ruled()
    live = LiveSettings(inside)
    with pytest.raises(InvalidValue, match="waiters_max: Value error, waiters_max is more than"):
        live.set_to("waiters_max", 15, "ann", "why", 1)
    assert not take(live, 0, setting("waiters_max", 15))
    assert values(inside) == (5, 10)
    assert take(live, 1, setting("requests_in_flight_max", 20))
    assert values(inside) == (15, 20)
    assert not take(live, 2, unset("requests_in_flight_max"))
    assert values(inside) == (15, 20)
    assert take(live, 3, unset("waiters_max"))
    assert values(inside) == (5, 10), "the unset that did not fit has followed"


changes = st.tuples(st.sampled_from(NAMES), st.none() | st.integers(-3, 25)).map(
    lambda each: unset(each[0]) if each[1] is None else setting(*each)
)


@given(st.lists(changes, max_size=12), st.data())
def test_a_restart_after_any_compaction_finds_the_same_settings_in_force(
    wanted: list[SettingChange], data: st.DataObject
) -> None:
    """Writers write only what fits at that moment. Compaction deletes any records but the latest of each key."""
    inside = ruled()
    live, log = LiveSettings(inside), list[LogRecord]()
    for change in wanted:
        try:
            if change.is_set:
                live.set_to(change.name, change.value, "ann", "why", 1)
            else:
                live.unset(change.name, "ann", "why", 1)
        except SettingRefused:
            continue
        log.append(record(len(log), change))
        live.take(log[-1])
    latest = {each.key: each.offset for each in log}
    kept = [each for each in log if latest[each.key] == each.offset or data.draw(st.booleans())]
    after = ruled()
    again = LiveSettings(after)
    for each in kept:
        try:
            again.take(each)
        except BadControlRecord:
            continue
    assert values(after) == values(inside)
    # A slow model: the latest change of each key, and the base.
    newest = {found.name: found for found in map(_decoded, log)}
    expected = {
        name: newest[name].value if name in newest and newest[name].is_set else getattr(inside.base, name)
        for name in NAMES
    }
    assert values(inside) == tuple(expected[name] for name in NAMES)


def _decoded(each: LogRecord) -> SettingChange:
    document = orjson.loads(each.value or b"")
    if document["type"] == "setting":
        return setting(document["name"], document["value"])
    return unset(document["name"])


@given(st.lists(changes, max_size=12))
def test_no_record_brings_a_combination_into_force_that_the_model_refuses(
    wanted: list[SettingChange],
) -> None:
    inside = ruled()
    live = LiveSettings(inside)
    for offset, change in enumerate(wanted):
        before = values(inside)
        if not take(live, offset, change):
            assert values(inside) == before
        waiters, in_flight = values(inside)
        assert 1 <= waiters <= in_flight
