"""What `seckill control` prints of the words of operators."""

import json

import pytest

from pipeline.cli.control import _print_entry, _row
from pipeline.control.operator import Entry
from pipeline.messages.settings import SettingChange

HIDDEN = SettingChange("busy_message", True, "a\u202eb", "ann\u202e", "系统\u200b繁忙 \U000e0061", 0)


def test_marks_without_a_glyph_are_shown_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    entry = Entry(3, HIDDEN)
    _print_entry(entry, as_json=False)
    printed = capsys.readouterr().out
    assert printed == (
        "offset 3  1970-01-01T00:00:00.000Z  busy_message = 'a\\u202eb'  "
        "ann\\u202e: 系统\\u200b繁忙 \\U000e0061\n"
    )
    change = entry.document()
    row = _row({"name": "busy_message", "source": "control", "value": "x", "change": change})
    assert row.isprintable()
    assert "系统\\u200b繁忙" in row
    _print_entry(entry, as_json=True)
    assert json.loads(capsys.readouterr().out)["by"] == HIDDEN.by
