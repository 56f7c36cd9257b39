"""A watched file: its content counts, a bad one keeps the last good value, and each change is reported once."""

import asyncio
import logging
from pathlib import Path

import pytest

from turnkeeper.watched_file import STANDS_STILL, BadFile, WatchedFile


def parse(content: bytes) -> int:
    try:
        return int(content)
    except ValueError:
        raise BadFile("not a number") from None


class Watched:
    def __init__(self, path: Path, *, stands_still: float = 0.0) -> None:
        self.reports: list[tuple[str, str]] = []
        self.file = WatchedFile(
            path,
            parse,
            name="numbers",
            max_bytes=8,
            report=lambda name, outcome: self.reports.append((name, outcome)),
            stands_still=stands_still,
        )


async def test_the_value_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_text("1")
    watched = Watched(path)
    path.touch()
    assert not await watched.file.look()
    path.write_text("2")
    assert await watched.file.look()
    assert (watched.file.value, watched.file.generation) == (2, 2)
    assert watched.reports == [("numbers", "LOADED")]


async def test_a_swapped_link_is_a_change(tmp_path: Path) -> None:
    for name, text in (("one", "1"), ("two", "2")):
        (tmp_path / name).write_text(text)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")
    watched = Watched(link)
    link.unlink()
    assert not await watched.file.look()  # between two links there is none
    link.symlink_to(tmp_path / "two")
    assert await watched.file.look()
    assert watched.file.value == 2


@pytest.mark.parametrize("bad", [b"x", b"123456789"])
async def test_a_bad_file_keeps_the_value_and_is_logged_once(
    tmp_path: Path, bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "numbers"
    path.write_text("1")
    watched = Watched(path)
    path.write_bytes(bad)
    with caplog.at_level(logging.ERROR):
        assert not await watched.file.look()
        assert not await watched.file.look()
    assert watched.file.value == 1
    assert watched.reports == [("numbers", "REFUSED")]
    assert len(caplog.records) == 1
    path.write_text("1")
    assert await watched.file.look()


def test_a_bad_file_at_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="No such file"):
        Watched(tmp_path / "missing")


async def test_a_file_that_is_written_in_place_counts_once_it_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each half would be a number, too; the file is empty in between."""
    path = tmp_path / "numbers"
    path.write_text("1")
    watched = Watched(path, stands_still=STANDS_STILL)
    contents = iter(["", "2", "23"])
    pauses: list[float] = []

    async def written_on(pause: float) -> None:
        pauses.append(pause)
        if (content := next(contents, None)) is not None:
            path.write_text(content)

    monkeypatch.setattr(asyncio, "sleep", written_on)
    path.write_text("9")
    assert await watched.file.look()
    assert watched.file.value == 23
    assert watched.reports == [("numbers", "LOADED")]
    assert pauses == [0.5] * 4


async def test_a_file_that_is_as_before_after_all_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "numbers"
    path.write_text("1")
    watched = Watched(path, stands_still=STANDS_STILL)

    async def written_back(_: float) -> None:
        path.write_text("1")

    monkeypatch.setattr(asyncio, "sleep", written_back)
    path.write_text("")
    assert not await watched.file.look()
    assert (watched.file.value, watched.reports) == (1, [])


async def test_a_value_that_cannot_be_applied_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "numbers"
    path.write_text("1")
    applied: list[int] = []

    async def apply(value: int) -> None:
        if value == 2:
            raise BadFile("two is taken")
        applied.append(value)

    file = WatchedFile(path, parse, name="numbers", max_bytes=8, stands_still=0.0)
    file.apply = apply
    path.write_text("2")
    assert not await file.look()
    assert "numbers not reloaded, the last good ones stay in effect: two is taken" in caplog.text
    path.write_text("3")
    assert await file.look()
    assert (file.value, applied) == (3, [3])
