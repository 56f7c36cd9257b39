"""Sizes of memory as people write them, and how much the machine or its control group gives."""

from pathlib import Path

import pytest

from turnkeeper import sizes
from turnkeeper.sizes import Size

GROUP = "/docker/one"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("1.5 GiB", 3 << 29),
        ("300KiB", 300 << 10),
        ("7B", 7),
        ("1TiB", 1 << 40),
    ],
)
def test_a_size_is_read_and_its_text_is_read_as_the_same(text: str, size: int) -> None:
    assert Size.parse(text) == size
    assert Size.parse(str(Size.parse(text))) == size


@pytest.mark.parametrize("text", ["", "512", "512M", "512MB", "-1MiB", "1e3MiB", "many"])
def test_other_texts_are_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as 512MiB"):
        Size.parse(text)


def cgroups(folder: Path, lines: str, **files: str) -> tuple[Path, Path]:
    """Writes control groups: `lines` names those of the process, `files` has each limit by its path with `__` for /."""
    for name, text in files.items():
        file = (
            folder
            / "groups"
            / name.replace("__", "/").replace("max", "memory.max").replace("limit", "memory.limit_in_bytes")
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    (folder / "own").write_text(lines)
    return folder / "groups", folder / "own"


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        (f"0::{GROUP}\n", {"docker__one__max": "1048576"}),
        (f"0::{GROUP}\n", {"docker__one__max": "max", "docker__max": "1048576"}),
        (f"0::{GROUP}\n", {"docker__one__max": "1048576", "docker__max": "2097152"}),
        ("0::/\n", {"max": "1048576"}),
        (f"0::{GROUP}\n", {"max": "1048576"}),
        (f"9:name=systemd:/\n4:memory:{GROUP}\n0::/\n", {"memory__docker__one__limit": "1048576"}),
        (f"4:cpu,memory:{GROUP}\n", {"memory__limit": "1048576"}),
    ],
)
def test_the_smallest_limit_of_the_groups_counts(tmp_path: Path, lines: str, files: dict[str, str]) -> None:
    assert sizes.of_machine(*cgroups(tmp_path, lines, **files)) == 1 << 20


@pytest.mark.parametrize("lines", ["", f"0::{GROUP}\n", f"4:memory:{GROUP}\n"])
def test_without_a_limit_the_machine_counts(tmp_path: Path, lines: str) -> None:
    files = {"docker__one__max": "max", "memory__docker__one__limit": str((1 << 63) - 4096)}
    limited = sizes.of_machine(*cgroups(tmp_path, lines, **files))
    assert limited == sizes.of_machine(tmp_path, tmp_path / "missing") > 64 << 20
