"""Shared reads: one at a time per key; each answer is from a read that began after its question."""

import asyncio
import gc
import weakref
from collections.abc import Sequence

import pytest
from eventually import turns

from pipeline.ingress.http import shared_reads
from pipeline.ingress.http.shared_reads import SharedReads


class Store:
    """Answers a question with its key and the number of the read; a read waits for the gate to open."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, list[str]]] = []
        self.gate = asyncio.Event()
        self.fault: Exception | None = None

    async def read(self, key: str, questions: Sequence[str]) -> list[str]:
        self.begun.append((key, list(questions)))
        number = len(self.begun)
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return [f"{key}.{question}@{number}" for question in questions]


async def asked(reads: SharedReads[str, str], *questions: str, key: str = "p") -> list["asyncio.Task[str]"]:
    tasks = [asyncio.create_task(reads.ask(key, question)) for question in questions]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_a_question_during_a_read_is_answered_by_the_next_read() -> None:
    store = Store()
    reads = SharedReads(store.read)
    first = await asked(reads, "a", "b")
    late = await asked(reads, "c", "d")
    other = await asked(reads, "a", key="q")
    assert store.begun == [("p", ["a", "b"]), ("q", ["a"])]
    store.gate.set()
    answers = await asyncio.gather(*first, *late, *other)
    assert answers == ["p.a@1", "p.b@1", "p.c@3", "p.d@3", "q.a@2"]
    assert await reads.ask("p", "a") == "p.a@4", "answers are not cached"


class Key(str):
    __slots__ = ("__weakref__",)


async def test_a_key_is_forgotten_when_all_are_answered() -> None:
    store = Store()
    store.gate.set()
    reads = SharedReads(store.read)
    key = Key("p")
    forgotten = weakref.ref(key)
    assert await reads.ask(key, "a") == "p.a@1"
    store.begun.clear()
    del key
    await turns()
    gc.collect()
    assert forgotten() is None


async def test_an_error_reaches_all_waiting_callers_and_no_later_ones() -> None:
    store = Store()
    reads = SharedReads(store.read)
    store.fault = OSError("down")
    waiting = [*await asked(reads, "a"), *await asked(reads, "b")]
    store.gate.set()
    for task in waiting:
        with pytest.raises(OSError, match="down"):
            await task
    assert len(store.begun) == 1
    store.fault = None
    assert await reads.ask("p", "a") == "p.a@2"


async def test_a_cancelled_caller_does_not_affect_the_others() -> None:
    store = Store()
    reads = SharedReads(store.read)
    first, second = await asked(reads, "a", "b")
    leaves, stays = await asked(reads, "c", "d")
    first.cancel()
    leaves.cancel()
    await asyncio.sleep(0)
    store.gate.set()
    assert list(await asyncio.gather(second, stays)) == ["p.b@1", "p.d@2"]
    assert store.begun[1] == ("p", ["d"])


async def test_a_read_answers_a_limited_number_of_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_reads, "QUESTIONS_PER_READ_MAX", 2)
    store = Store()
    store.gate.set()
    reads = SharedReads(store.read)
    tasks = await asked(reads, *"abcde")
    assert await asyncio.gather(*tasks) == ["p.a@1", "p.b@1", "p.c@2", "p.d@2", "p.e@3"]
