"""How real model servers write an answer: the bytes that each sends, and what the answer is.

One table for the contract suite, which plays each over HTTP, for the fuzz of the reader, and for the guide's page:
`python -m tests.model_servers.table` writes its table.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.model_servers.answers import FRAMINGS, SHAPES
from tests.model_servers.calls import PARTS, ROUND_TRIPS
from tests.model_servers.endings import ENDINGS
from tests.model_servers.streams import Stream
from turnkeeper.domain.message import FinishReason

PAGE = Path(__file__).parents[2] / "docs/guide/model-servers.md"
BEGIN, END = "<!-- the table: python -m tests.model_servers.table -->\n", "<!-- its end -->\n"
TABLE: Mapping[str, Sequence[Stream]] = {
    "What comes with a call": ROUND_TRIPS,
    "How an answer is written": FRAMINGS,
    "Where an answer stands": SHAPES,
    "Which part belongs to which call": PARTS,
    "How an answer ends": ENDINGS,
}
"""The whole table, by the headings of the guide's page."""
STREAMS: Sequence[Stream] = tuple(stream for group in TABLE.values() for stream in group)


def name_of(stream: Stream) -> str:
    """Returns a name for the stream in a test's id."""
    return f"{stream.server}: {stream.what}".replace("`", "")


def in_the_guide() -> str:
    """Returns the table as the guide's page has it."""
    lines: list[str] = []
    for heading, group in TABLE.items():
        lines += [f"### {heading}", "", "| server | what is special | what becomes of it |", "| --- | --- | --- |"]
        lines += [f"| {stream.server} | {stream.what} | {_outcome(stream)} |" for stream in group]
        lines.append("")
    return "\n".join(lines)


def with_the_table(page: str) -> str:
    """Returns the page with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{in_the_guide()}{END}{rest.partition(END)[2]}"


def _outcome(stream: Stream) -> str:
    """Returns what becomes of the answer, in a few words."""
    if not isinstance(stream.end, FinishReason):
        return f"`{stream.end}`"
    calls = len(stream.calls)
    parts = [*(["text"] if stream.text else []), *([f"{calls} call{'s' * (calls > 1)}"] if calls else [])]
    return (" and ".join(parts) or "an empty answer") + (", `LENGTH`" if stream.end is FinishReason.LENGTH else "")


if __name__ == "__main__":
    PAGE.write_text(with_the_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
