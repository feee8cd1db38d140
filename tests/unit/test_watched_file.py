"""A watched file: what counts as a change, what a fault leaves in use, and that the watch cannot end unseen."""

import asyncio
import os
from pathlib import Path

import pytest
from eventually import eventually
from tokens import replace

from pipeline.process import watched_file
from pipeline.process.watched_file import FILE_BYTES_MAX, FileWatch, UnusableFile, WatchedFile


def as_number(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        raise ValueError("not a number") from None


async def loaded(path: Path) -> WatchedFile[int]:
    replace(path, b"1")
    file = WatchedFile("SECKILL_X_FILE", path, as_number)
    await file.load()
    return file


async def test_a_file_that_cannot_be_used_prevents_the_start(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data, reason in (
        (None, "No such file"),
        (b"one", "not a number"),
        (b"1" * (FILE_BYTES_MAX + 1), "larger"),
    ):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(UnusableFile, match=rf"^SECKILL_X_FILE: {reason}.* \({path}\)$"):
            await FileWatch([WatchedFile("SECKILL_X_FILE", path, as_number)]).start()


async def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x"
    file = await loaded(path)
    replace(path, b"2")
    await file.look()
    assert file.content == 2
    # Written in place, with the length and the time of the old content, as some copying tools do.
    before = path.stat()
    path.write_bytes(b"3")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    await file.look()
    assert file.content == 3


async def test_a_link_to_another_file_is_a_change(tmp_path: Path) -> None:
    """Kubernetes replaces secrets this way."""
    link, new = tmp_path / "x", tmp_path / "new"
    for name, data in (("1", b"1"), ("2", b"2")):
        (tmp_path / name).write_bytes(data)
    link.symlink_to("1")
    file = WatchedFile("SECKILL_X_FILE", link, as_number)
    await file.load()
    new.symlink_to("2")
    new.replace(link)
    await file.look()
    assert file.content == 2


async def test_what_is_no_file_is_refused_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UnusableFile, match="not a regular file"):
            await WatchedFile("SECKILL_X_FILE", path, as_number).load()


async def test_a_fault_stays_reported_until_the_file_is_valid_again(tmp_path: Path) -> None:
    path = tmp_path / "x"
    file = await loaded(path)
    before = file.content
    replace(path, b"one")
    for _ in range(2):
        await file.look()
        assert file.fault == "SECKILL_X_FILE: not a number"
    assert file.content is before
    aside = path.with_name("aside")
    replace(path, b"1")
    await file.look()
    path.rename(aside)
    await file.look()
    assert file.fault == "SECKILL_X_FILE: No such file or directory"
    # The same file, unchanged, is back.
    aside.rename(path)
    await file.look()
    assert file.fault is None


async def test_the_watch_sees_changes_until_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_file, "LOOK_MS", 1)
    path = tmp_path / "x"
    path.write_bytes(b"1")
    file = WatchedFile("SECKILL_X_FILE", path, as_number)
    watch = FileWatch([file])
    await watch.start()
    replace(path, b"2")
    await eventually(lambda: file.content == 2, "the new content is in use")
    replace(path, b"two")
    await eventually(lambda: watch.faults, "the fault is reported")
    assert watch.is_alive
    await watch.stop()
    assert not watch.is_alive


async def test_a_watch_that_fails_is_no_longer_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watched_file, "LOOK_MS", 1)
    file = WatchedFile("SECKILL_X_FILE", tmp_path / "x", as_number)
    (tmp_path / "x").write_bytes(b"1")
    watch = FileWatch([file])
    await watch.start()

    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(file, "_read", fail)
    await eventually(lambda: not watch.is_alive, "the watch has ended")
    assert "the file watch has ended" in caplog.text
    await asyncio.gather(watch.stop())
