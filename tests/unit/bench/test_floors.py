"""Floors stay as short and plain as they claim."""

from pathlib import Path

import pytest

from tests.bench import floors
from turnkeeper.model.script_file import load_script

FLOORS = sorted(Path(floors.__file__).parent.glob("*.py"))
BENCH = Path(floors.__file__).parents[1]


@pytest.mark.parametrize("file", FLOORS, ids=lambda file: file.stem)
def test_a_floor_can_be_read_in_a_minute(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 80


def test_both_answers_of_the_model_are_32_chunks() -> None:
    replies = load_script(BENCH / "model.toml").replies
    assert [-(-len(reply.text) // reply.chunk) for reply in (replies[0], replies[-1])] == [32, 32]
    assert replies[0].text == replies[-1].text
