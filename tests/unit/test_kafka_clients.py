"""Every Kafka client connects as the settings say: none is created without `client_options`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = frozenset({"client_options", "connection_options", "options"})
"""`options` is what `connection_options` returned, passed on (pipeline/local/kafka.py)."""


def _clients(source: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name == "create_conn" or (name.startswith("AIOKafka") and name != "AIOKafkaConsumerThread"):
                yield node


def _is_secured(call: ast.Call) -> bool:
    spread = (each.value for each in call.keywords if each.arg is None)
    return any(ast.unparse(each).partition("(")[0] in OPTIONS for each in spread)


def test_every_client_takes_the_options_of_its_brokers() -> None:
    found = 0
    for folder in ("pipeline", "agents", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for call in _clients(path.read_text("utf-8")):
                found += 1
                assert _is_secured(call), f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
    assert found >= 10


@pytest.mark.parametrize(
    "source",
    [
        "AIOKafkaProducer(bootstrap_servers=brokers)",
        "aiokafka.AIOKafkaConsumer('t')",
        "AIOKafkaClient(**more(brokers))",
        "await create_conn(host, port)",
    ],
)
def test_a_client_without_them_is_found(source: str) -> None:
    (call,) = _clients(source)
    assert not _is_secured(call)
