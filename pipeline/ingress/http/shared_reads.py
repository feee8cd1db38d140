"""Reads that all who ask for the same thing share: however many ask, one read of a key is under way at a time.

While it is, the next askers gather, and the next read takes them all. So each answer is from a read that began after
its asker came, which no cache could promise, and the store has as many reads to do as there are keys asked for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

QUESTIONS_PER_READ_MAX = 1_000

QuestionT = TypeVar("QuestionT")
AnswerT = TypeVar("AnswerT")


class SharedReads(Generic[QuestionT, AnswerT]):
    """`read` answers the questions of a key, in their order; what it raises goes to all who wait for that key."""

    def __init__(self, read: Callable[[str, Sequence[QuestionT]], Awaitable[Sequence[AnswerT]]]) -> None:
        self._read = read
        self._gathered: dict[str, list[tuple[asyncio.Future[AnswerT], QuestionT]]] = {}
        self._driving: set[asyncio.Task[None]] = set()

    async def ask(self, key: str, question: QuestionT) -> AnswerT:
        """The answer to this question, from a read that begins after this call."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[AnswerT] = loop.create_future()
        gathered = self._gathered.get(key)
        if gathered is None:
            gathered = self._gathered[key] = []
            # A task of its own: a client that hangs up must not take the others' read away.
            task = loop.create_task(self._drive(key, gathered), name=f"reads of {key}")
            self._driving.add(task)
            task.add_done_callback(self._driving.discard)
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
        except Exception as error:  # noqa: BLE001 -- it is theirs who asked; those who still gather need not wait for it
            for future, _ in (*asking, *gathered):
                if not future.done():
                    future.set_exception(error)
        finally:
            del self._gathered[key]
            for future, _ in (*asking, *gathered):
                future.cancel()
