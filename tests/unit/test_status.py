"""`seckill status`: which version of the live settings is in force in each part."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.local.listen import free_port
from pipeline.local.state import PartState, PartStatus, SystemState
from pipeline.local.status import describe, document, settings_versions

ANSWERS = {
    "/ready": (200, b'{"status":"ready","control":{"version":7,"refused":null}}'),
    "/not-ready": (503, b'{"checks":{"redis":"no answer"},"control":{"version":-1,"refused":null}}'),
    "/other": (200, b'{"control":[7]}'),
    "/list": (200, b"[7]"),
    "/page": (200, b"<html>"),
}


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = ANSWERS[self.path]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_each_part_is_asked_for_the_version_in_force(address: str) -> None:
    health = {path.strip("/"): address + path for path in ANSWERS}
    health |= {"gone": f"http://127.0.0.1:{free_port()}/ready"}
    parts = [PartState(name, PartStatus.READY, 5, "http://x:1", 0, url) for name, url in health.items()]
    state = SystemState(1, True, [PartState("redis", PartStatus.GIVEN, None, "redis://x", 0), *parts])
    versions = settings_versions(state)
    expected = dict.fromkeys(("redis", *health), None) | {"ready": 7, "not-ready": -1}
    assert versions == expected
    shown = json.loads(document(state, versions))["parts"]
    assert {part["name"]: part["settings_version"] for part in shown} == expected
    header, *rows = describe(state, versions, Path("data")).splitlines()
    column = header.split().index("SETTINGS")
    assert {row.split()[0]: row.split()[column] for row in rows} == {
        name: "-" if version is None else str(version) for name, version in expected.items()
    }


def test_without_a_system_nobody_is_asked() -> None:
    assert settings_versions(None) == {}
    assert json.loads(document(None, {})) == {"pid": None, "ready": False, "parts": []}
    assert "no system is running on data" in describe(None, {}, Path("data"))
