"""The limits of what a tool server lists, whatever it speaks."""

from typing import Final

from turnkeeper.tools.untrusted_schema import schema_problem

MOST_TOOLS: Final = 1_000
"""Tools of one server, at most."""
DESCRIPTION: Final = 8_192
"""Characters of a description, at most; the rest is cut."""
SCHEMA_BYTES: Final = 64 << 10
"""Bytes of a schema, at most."""
SECOND_OF_ITS_NAME: Final = "the server lists two tools of this name, and the first one has it"
"""Why the second of two such tools is not offered: the rule that two sources have, too."""


def listed_problem(schema_json: str) -> str:
    """Returns what is wrong with a tool's schema; empty if nothing is."""
    if len(schema_json.encode(errors="replace")) > SCHEMA_BYTES:
        return f"has more than {SCHEMA_BYTES} bytes"
    return schema_problem(schema_json)
