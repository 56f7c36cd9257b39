"""A watched file: its content counts, a bad one keeps the last good value, and each change is reported once."""

import logging
from pathlib import Path

import pytest

from turnkeeper.watched_file import BadFile, WatchedFile


def parse(content: bytes) -> int:
    try:
        return int(content)
    except ValueError:
        raise BadFile("not a number") from None


class Watched:
    def __init__(self, path: Path) -> None:
        self.reports: list[tuple[str, str]] = []
        self.file = WatchedFile(
            path, parse, name="numbers", max_bytes=8, report=lambda name, outcome: self.reports.append((name, outcome))
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
