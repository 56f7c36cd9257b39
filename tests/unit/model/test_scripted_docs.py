"""The reference page tells the truth."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from tests.contracts.test_model_contract import FAILURES
from turnkeeper.model.script import Reply, ScriptedFailure
from turnkeeper.model.script_file import parse_script

PAGE = (Path(__file__).parents[3] / "docs/reference/scripted-model.md").read_text(encoding="utf-8")
ROWS = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \|.*\| (\w+) \| (yes|no) \|$", PAGE, re.MULTILINE)}


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_every_example_is_a_script(example: str) -> None:
    assert parse_script(example).replies


def test_every_key_has_a_row() -> None:
    keys = {field.name for field in fields(Reply)} - {"fail", "fail_after", "retry_after"}
    assert keys == {key for key in keys if f"| `{key}` |" in PAGE}


def test_every_failure_has_a_row_with_what_becomes_of_it() -> None:
    assert {ScriptedFailure(name): row for name, row in ROWS.items()} == {
        how: (code.name, "yes" if retryable else "no") for how, (_, code, retryable) in FAILURES.items()
    }
