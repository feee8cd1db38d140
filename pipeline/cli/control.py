"""`seckill control`: the settings that change while the sale runs. It talks to Kafka, not to an ingress."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.invocation import load_system, operator_name, print_json, report_errors

if TYPE_CHECKING:
    from pipeline.control.live_settings import LiveSettings
    from pipeline.control.operator import Entry
    from pipeline.messages.settings import SettingChange

_ROW = "{:<40} {:<11} {}"
NO_VALUE = "null"
"""The value of a setting that has none."""


@click.group()
def control() -> None:
    """Settings that change while the sale runs; docs/settings.md lists them.

    A change is a record of the control topic. Every process applies it within a second, and a restart keeps it.
    """


def _text(length_max: int) -> Callable[[click.Context, click.Parameter, str], str]:
    def check(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
        from pipeline.messages.fields import LINE

        if len(text) > length_max or not LINE.fullmatch(text):
            raise click.BadParameter(f"must be a line of 1 to {length_max} characters")
        return text

    return check


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
# The limits of a record's fields: pipeline/messages/fields.py, which this file must not import at its start.
_reason = click.option("--reason", required=True, callback=_text(500), help="Why; kept with the change.")
_by = click.option(
    "--by",
    default=operator_name,
    callback=_text(100),
    help="Who; kept with the change.  [default: the user of the system]",
)


@control.command()
@click.argument("name", required=False)
@_json
def get(name: str | None, as_json: bool) -> None:
    """Print the value in force of one setting, or of all."""
    with report_errors():
        from pipeline.control.operator import read_settings

        settings, topics = load_system()
        live = asyncio.run(read_settings(settings, topics.control))
        document = live.describe_all() if name is None else live.describe(name)
    if as_json:
        print_json(document)
        return
    click.echo(_ROW.format("NAME", "SOURCE", "VALUE"))
    for each in document["settings"] if name is None else [document]:
        click.echo(_row(each))
    click.echo(f"version {live.version}")


@control.command(name="set")
@click.argument("name")
@click.argument("value")
@_reason
@_by
@_json
def set_value(name: str, value: str, reason: str, by: str, as_json: bool) -> None:
    """Set a live setting. VALUE is as in the environment; null for none."""
    with report_errors():
        _change(name, as_json, lambda live: live.set_to(name, _scalar(value), by, reason, _now_ms()))


@control.command()
@click.argument("name")
@_reason
@_by
@_json
def unset(name: str, reason: str, by: str, as_json: bool) -> None:
    """Return a live setting to its value in the environment or the settings file, or to its default."""
    with report_errors():
        _change(name, as_json, lambda live: live.unset(name, by, reason, _now_ms()))


@control.command()
@_json
def watch(as_json: bool) -> None:
    """Print each change as it is made, until Ctrl-C."""
    with report_errors():
        from pipeline.control.operator import watch as run_watch

        settings, topics = load_system()
        try:
            asyncio.run(run_watch(settings, topics.control, lambda entry: _print_entry(entry, as_json)))
        except KeyboardInterrupt:
            return
        except BrokenPipeError:
            # Otherwise Python would fail again at exit when it flushes the buffer.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@control.command()
@click.argument("name", required=False)
@_json
def history(name: str | None, as_json: bool) -> None:
    """Print all changes, or those of one setting: of the last 30 days at least, and the latest of each setting."""
    with report_errors():
        from pipeline.control.operator import read_history

        settings, topics = load_system()
        with _without_log():
            entries = asyncio.run(read_history(settings, topics.control, name))
    for entry in entries:
        _print_entry(entry, as_json)


@contextmanager
def _without_log() -> Iterator[None]:
    """Logs no refused records: the command lists them itself."""
    logger = logging.getLogger("pipeline.control")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _change(name: str, as_json: bool, make: "Callable[[LiveSettings], SettingChange]") -> None:
    """Check a change against what is in force, write it and print it. Raises what reading and writing raise."""
    from pipeline.control.operator import Entry, read_settings, write_once

    settings, topics = load_system()

    async def write() -> "tuple[SettingChange, Any, int]":
        live = await read_settings(settings, topics.control)
        change = make(live)
        before = live.describe(name)["value"]
        return change, before, await write_once(settings, topics.control, change)

    change, before, offset = asyncio.run(write())
    if as_json:
        print_json({**Entry(offset, change).document(), "before": before})
        return
    click.echo(f"{name} {_done(change)} from offset {offset} on; before: {_shown(before)}")


def _print_entry(entry: "Entry", as_json: bool) -> None:
    if as_json:
        print_json(entry.document())
    elif entry.change is None:
        click.echo(f"offset {entry.offset}  refused: {entry.refusal}")
    else:
        change, at = entry.change, entry.document()["at"]
        who_and_why = f"{change.by}: {change.reason}"
        click.echo(f"offset {entry.offset}  {at}  {change.name} {_done(change)}  {_visible(who_and_why)}")
    sys.stdout.flush()


def _row(setting: dict[str, Any]) -> str:
    change = setting["change"]
    row = _ROW.format(setting["name"], setting["source"], _shown(setting["value"]))
    if change is None:
        return row
    by, at, reason = change["by"], change["at"], change["reason"]
    return f"{row}  ({_visible(f'{by}, {at}: {reason}')})"


def _done(change: "SettingChange") -> str:
    return f"= {_shown(change.value)}" if change.is_set else "unset"


def _shown(value: object) -> str:
    """The value on one line."""
    text = NO_VALUE if value is None else str(value)
    return text if text.isprintable() else repr(text)


def _visible(text: str) -> str:
    """The text with escapes for what has no glyph: a mark that reverses the direction could show another author."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _scalar(text: str) -> str | None:
    return None if text == NO_VALUE else text


def _now_ms() -> int:
    return int(time.time() * 1_000)
