"""Where a process listens."""

from pipeline.settings.value_types import Area, OrUnset, Port

HEALTH_HOST = "127.0.0.1"
"""The address that `health_port` is opened on."""


class Listeners(Area):
    """Listeners"""

    public_host: str = "127.0.0.1"
    """The address of the public listener: purchases, polls, statistics."""
    public_port: Port = 8083
    """Its port; the ingresses of a machine share it."""
    admin_host: str = "127.0.0.1"
    """The address of the administration listener: a loopback address, unless tokens are required."""
    admin_port: Port = 8084
    """Its port; the ingresses of a machine share it."""
    admin_on_public: bool = False
    """If on, the public listener serves the administration calls too, to tokens with their scope."""
    health_port: OrUnset[Port] = None
    """On `HEALTH_HOST`: `/health` of this process alone, even if the public listener is full or shared with others."""
    tables_host: str = "127.0.0.1"
    """The address of the web pages of workers and followers."""
    tables_port: Port = 6066
    """The web pages of the followers' Faust tables; the first worker's pages are on the next port, and so on."""
