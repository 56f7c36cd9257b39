"""Sample tools of all three classes, for the sample agents, the demo and a reader's first steps."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from turnkeeper.tools import ToolClass, ToolContext, ToolError, tool

OUTBOX = "TURNKEEPER_SAMPLE_OUTBOX"
"""The environment variable with the file that `send_message` appends to; default: ./outbox.jsonl."""


@tool(tool_class=ToolClass.READ_ONLY)
def current_time() -> str:
    """Tell the time in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@tool(tool_class=ToolClass.READ_ONLY)
def add(a: float, b: float) -> float:
    """Add two numbers."""
    return a + b


@tool(tool_class=ToolClass.IDEMPOTENT)
def write_note(name: str, text: str) -> str:
    """Write a note; a note of the same name is replaced."""
    if not name.isidentifier():
        raise ToolError("A note's name has letters, digits and underscores only.")
    outbox = _outbox()
    (outbox.parent / f"note-{name}.txt").write_text(text, encoding="utf-8")
    return f"Note {name} is written."


@tool(tool_class=ToolClass.IRREVERSIBLE)
def send_message(to: str, text: str, context: ToolContext) -> str:
    """Send a message to a person. It cannot be taken back."""
    line = json.dumps({"to": to, "text": text, "key": context.key}, ensure_ascii=False)
    with _outbox().open("a", encoding="utf-8") as outbox:
        outbox.write(line + "\n")
    return f"Sent to {to}."


def _outbox() -> Path:
    """Returns the file that `send_message` appends to."""
    return Path(os.environ.get(OUTBOX, "outbox.jsonl")).absolute()
