"""The runbooks: each symptom that is counted has one, and what they quote of the log is in the code."""

import re
from typing import Final

import pytest

from tests.unit.docs.pages import DOCS, ROOT, table
from tests.unit.telemetry.test_reference import quoted, rows

PAGE: Final = (DOCS / "operations/runbooks.md").read_text(encoding="utf-8")
SOURCE: Final = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "service/turnkeeper").rglob("*.py"))
OF_WORK: Final = frozenset({"messages", "tool_calls", "approvals", "replays"})
"""Counters that rise when all is well."""
_PLACEHOLDER: Final = re.compile(r"…|HOST|\bA\b|\bB\b")


def test_each_counter_of_a_symptom_has_a_runbook_and_every_name_is_that_of_an_instrument() -> None:
    instruments = {quoted(row[0]).pop(): row[1] for row in rows("Metrics")}
    symptoms = {name for name, kind in instruments.items() if kind == "counter"}
    named = {name for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", PAGE) if not name.startswith("rs.")} - {
        "server.address",
        "error.type",
    }
    assert named <= instruments.keys()
    assert symptoms - named == {f"turnkeeper.{name}" for name in OF_WORK}


@pytest.mark.parametrize(
    "line", [row[0] for head in ("the reason", "the log has") for row in table(PAGE, head, "do")], ids=lambda line: line
)
def test_each_line_that_a_table_quotes_is_one_of_the_log(line: str) -> None:
    if line != "nothing new":
        parts = [part.strip() for part in _PLACEHOLDER.split(line)]
        assert [part for part in parts if part and part not in SOURCE] == []


def test_each_error_code_of_the_page_is_one() -> None:
    codes = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", PAGE)) - {"IF_BUSY_ENQUEUE", "LLM_", "NOT_SERVING", "MONGODB_URI"}
    known = set(re.findall(r"^    ([A-Z_]+) = ", (ROOT / "service/turnkeeper/codes.py").read_text(), re.MULTILINE))
    assert codes <= known
