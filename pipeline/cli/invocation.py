"""What the commands share: loading settings and topics, reporting errors, printing JSON."""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.kafka.topics import Topics
    from pipeline.settings import Settings


@contextmanager
def report_errors(exit_code: int = 1) -> Iterator[None]:
    """Reports errors that the operator can fix, without a traceback. The exit code for a bad setting is always 2."""
    from pipeline.errors import Fatal, OperatorError, Unavailable

    try:
        yield
    except (OperatorError, Unavailable, Fatal) as error:
        from pipeline.process.configuration import BadSettings

        reported = click.ClickException(str(error))
        reported.exit_code = 2 if isinstance(error, BadSettings) else exit_code
        raise reported from error


def operator_name() -> str:
    """The name of the operating system's user. Raises UsageError if there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise click.UsageError("the operating system does not know your name; pass it with --by") from None


def load_system() -> "tuple[Settings, Topics]":
    """The settings, and the topics of their profile. Raises BadSettings and BadTopics."""
    from pipeline.kafka.topics import load_topics
    from pipeline.process.configuration import load_settings

    settings = load_settings()
    return settings, load_topics(settings.kafka_profile, settings.topics_file)


def print_json(document: Any) -> None:
    import orjson

    click.echo(orjson.dumps(document).decode())
