"""The command line: one file per group of commands.

Each command imports what it needs when it runs, so `seckill --help` starts at once.
"""

import logging

import click

from pipeline.cli.audit import audit
from pipeline.cli.control import control
from pipeline.cli.demo import demo
from pipeline.cli.local import status, up
from pipeline.cli.orders import orders
from pipeline.cli.rebuild import rebuild
from pipeline.cli.repair import repair
from pipeline.cli.sale import sale
from pipeline.cli.token import token
from pipeline.cli.topics import topics

__all__ = ["main"]


@click.group()
def main() -> None:
    """A flash sale on Kafka, Faust and Redis."""
    # aiokafka logs each attempt to connect; a command reports a failure once, at its end.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


for command in (up, status, topics, orders, sale, control, demo, audit, repair, rebuild, token):
    main.add_command(command)
