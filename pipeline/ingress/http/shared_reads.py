"""Reads shared by all requests for the same key: at most one read of a key is in progress at a time.

Requests that arrive during a read gather, and the next read serves them all. So every answer comes from a read that
began after its request arrived, which no cache could promise, and the store never has more reads than there are keys.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from pipeline.process.tasks import BackgroundTasks

QUESTIONS_PER_READ_MAX = 1_000

QuestionT = TypeVar("QuestionT")
AnswerT = TypeVar("AnswerT")

logger = logging.getLogger(__name__)


class SharedReads(Generic[QuestionT, AnswerT]):
    """`read` answers the questions about a key, in order. Its errors are raised to all callers waiting for that key."""

    def __init__(self, read: Callable[[str, Sequence[QuestionT]], Awaitable[Sequence[AnswerT]]]) -> None:
        self._read = read
        self._gathered: dict[str, list[tuple[asyncio.Future[AnswerT], QuestionT]]] = {}
        self._tasks = BackgroundTasks(logger)

    async def ask(self, key: str, question: QuestionT) -> AnswerT:
        """The answer to this question, from a read that begins after this call."""
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        gathered = self._gathered.get(key)
        if gathered is None:
            gathered = self._gathered[key] = []
            # A task of its own: a client that disconnects must not cancel a read that others wait for.
            self._tasks.start(self._drive(key, gathered), name=f"reads of {key}")
        gathered.append((future, question))
        return await future

    async def _drive(self, key: str, gathered: list[tuple[asyncio.Future[AnswerT], QuestionT]]) -> None:
        asking: list[tuple[asyncio.Future[AnswerT], QuestionT]] = []
        try:
            while gathered:
                asking = [each for each in gathered[:QUESTIONS_PER_READ_MAX] if not each[0].done()]
                del gathered[:QUESTIONS_PER_READ_MAX]
                if not asking:
                    continue
                answers = await self._read(key, [question for _, question in asking])
                for (future, _), answer in zip(asking, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
        except Exception as error:  # noqa: BLE001 -- raised to all callers, also to those that gathered meanwhile
            for future, _ in (*asking, *gathered):
                if not future.done():
                    future.set_exception(error)
        finally:
            del self._gathered[key]
            for future, _ in (*asking, *gathered):
                future.cancel()
