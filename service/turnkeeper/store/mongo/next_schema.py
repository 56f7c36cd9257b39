"""Lets this server write documents as the next version may write them, for tests of two versions at once (I17).

Enabled by `TURNKEEPER_TEST_SCHEMA` only.
"""

from collections.abc import Mapping
from typing import Final

from turnkeeper.start_errors import SettingError
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.documents import SCHEMA

VARIABLE: Final = "TURNKEEPER_TEST_SCHEMA"
NEXT: Final = SCHEMA + 1
FIELD: Final = "next_version"


def schema_of(environ: Mapping[str, str]) -> int:
    """Returns the schema that this server supports and writes. Raises SettingError for an unknown value."""
    known = {"": SCHEMA, "N": SCHEMA, str(SCHEMA): SCHEMA, "N+1": NEXT, str(NEXT): NEXT}
    given = environ.get(VARIABLE, "")
    if given not in known:
        raise SettingError(
            f"{VARIABLE} is {given!r}; it is for tests: N or {SCHEMA} is this version, N+1 or {NEXT} the next one"
        )
    return known[given]


def stamped(fields: Document, *, schema: int) -> Document:
    """Returns what the version of this schema writes where this version writes `fields`."""
    return fields if schema == SCHEMA else {**fields, "schema": schema, FIELD: {"schema": schema}}
