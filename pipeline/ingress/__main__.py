"""`python -m pipeline.ingress`: one ingress process, until SIGTERM or SIGINT."""

import asyncio
import logging
import os
import signal
import sys

from aiohttp.http_exceptions import HttpProcessingError

from pipeline.ingress.app import Ingress, StartFailed
from pipeline.kafka.record_format import NewerFormat
from pipeline.kafka.topics import BadTopics, Topics, load_topics
from pipeline.process.configuration import BadSettings, load_settings
from pipeline.process.event_loop import use_uvloop
from pipeline.process.garbage_collector import freeze_startup_objects
from pipeline.process.logs import configure_logging
from pipeline.process.tasks import cancel_and_wait
from pipeline.settings import Settings

logger = logging.getLogger("pipeline.ingress")


def main() -> int:
    """Returns the exit status: 0 after a requested stop, 1 after a fault, 2 if the process could not start."""
    configure_logging("ingress")
    logging.getLogger("aiohttp.server").addFilter(_is_our_fault)
    try:
        settings = load_settings()
        configure_logging(settings.worker_name, settings.log_level)
        topics = load_topics(settings.kafka_profile, settings.topics_file)
        use_uvloop()
        return asyncio.run(_serve(settings, topics))
    except (BadSettings, BadTopics, StartFailed) as error:
        logger.error("the ingress cannot start: %s", error)
        return 2


def _is_our_fault(record: logging.LogRecord) -> bool:
    """False for malformed HTTP: the client got a 400, and could otherwise flood the log with tracebacks."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def _serve(settings: Settings, topics: Topics) -> int:
    ingress = Ingress(settings, topics)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    stopped = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(ingress.start())
    # Startup may wait a long time for Kafka, but a stop signal must take effect at once.
    await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        await cancel_and_wait(starting)
        return await _end(ingress, 0)
    followed = starting.result()
    freeze_startup_objects()
    logger.info(
        "%s: purchases on %s:%d, administration on %s:%d",
        *(settings.worker_name, settings.public_host, settings.public_port),
        *(settings.admin_host, settings.admin_port),
    )
    await asyncio.wait({followed, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        return await _end(ingress, 0)
    fault = None if followed.cancelled() else followed.exception()
    is_explained = isinstance(fault, NewerFormat)
    logger.critical(
        "%s; exiting",
        fault if is_explained else "a part that must run all the time has failed",
        exc_info=None if is_explained else fault,
    )
    return await _end(ingress, 1)


async def _end(ingress: Ingress, status: int) -> int:
    if not await ingress.stop():
        # A part that did not stop would also keep the event loop from closing.
        logging.shutdown()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
