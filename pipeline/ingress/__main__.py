"""`python -m pipeline.ingress`: one ingress process, until SIGTERM or SIGINT."""

import asyncio
import logging
import os
import signal
import sys

import uvloop

from pipeline.ingress.app import Ingress, StartFailed
from pipeline.settings import BadSettings, Settings, load_settings
from pipeline.topics import BadTopics, Topics, load_topics

log = logging.getLogger("pipeline.ingress")


def main() -> int:
    """The exit status: 0 after a stop that was asked for, 1 after a fault, 2 if it could not start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings()
        topics = load_topics(settings.kafka_profile)
        return asyncio.Runner(loop_factory=uvloop.new_event_loop).run(_serve(settings, topics))
    except (BadSettings, BadTopics, StartFailed) as error:
        log.error("the ingress does not start: %s", error)
        return 2


async def _serve(settings: Settings, topics: Topics) -> int:
    ingress = Ingress(settings, topics)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    feed = await ingress.start()
    log.info(
        "%s takes purchases on %s:%d, administration on %s:%d",
        *(settings.worker_name, settings.public_host, settings.public_port),
        *(settings.admin_host, settings.admin_port),
    )
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({feed, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if feed.done():
        log.critical("the results feed failed, so this process ends", exc_info=feed.exception())
    status = 0 if stop.is_set() else 1
    if not await ingress.stop():
        # What did not stop would also keep the event loop from closing.
        logging.shutdown()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
