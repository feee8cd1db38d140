"""Local ports: which are free, and whether a listener answers."""

import errno
import http
import http.client
import json
import random
import socket
from typing import Any
from urllib.parse import urlsplit

from pipeline.domain.addresses import authority, local_host

PROBE_TIMEOUT_S = 0.5
DOCUMENT_BYTES_MAX = 1_048_576
"""Another program may listen on the port, and send without end."""
FREE_PORTS = range(10_000, 32_000)
"""Below the range of outgoing connections.

While a process restarts, an outgoing connection could take its port: even the readiness check, connected to itself.
"""


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    while True:
        port = random.choice(FREE_PORTS)
        if bind_error("127.0.0.1", port) is None:
            return port


def bind_error(host: str, port: int) -> str | None:
    """Why our processes cannot listen on this address; None if they can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Without SO_REUSEPORT, so that the port of a listener that would share it counts as in use, too.
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        return "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound: {error.strerror}"
    return None


def url(host: str, port: int) -> str:
    """The URL at which this machine reaches an HTTP listener bound to this address."""
    return f"http://{authority(local_host(host), port)}"


def answers_ok(host: str, port: int, path: str) -> bool:
    """Whether an HTTP GET returns 200 within PROBE_TIMEOUT_S."""
    connection = http.client.HTTPConnection(host, port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def json_at(url: str) -> Any:
    """The JSON document at this HTTP URL, whatever the status; None if none arrives within PROBE_TIMEOUT_S."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", parts.path)
        return json.loads(connection.getresponse().read(DOCUMENT_BYTES_MAX))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
