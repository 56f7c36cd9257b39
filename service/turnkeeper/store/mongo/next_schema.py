"""This server as the next version of itself: what a coming version may add to documents, written by this one (I17).

For tests of two versions on one database. `TURNKEEPER_TEST_SCHEMA` asks for it; without it nothing here does anything.
"""

from collections.abc import Mapping
from typing import Final

from turnkeeper.settings import SettingError
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.documents import SCHEMA

VARIABLE: Final = "TURNKEEPER_TEST_SCHEMA"
NEXT: Final = SCHEMA + 1
FIELD: Final = "next_version"


def schema_of(environ: Mapping[str, str]) -> int:
    """The schema that this server supports and writes. Raises SettingError."""
    known = {"": SCHEMA, "N": SCHEMA, str(SCHEMA): SCHEMA, "N+1": NEXT, str(NEXT): NEXT}
    asked = environ.get(VARIABLE, "")
    if asked not in known:
        raise SettingError(
            f"{VARIABLE} is {asked!r}; it is for tests: N or {SCHEMA} is this version, N+1 or {NEXT} the next one"
        )
    return known[asked]


def stamped(fields: Document, *, schema: int) -> Document:
    """What the version of this schema writes where this one writes `fields`."""
    return fields if schema == SCHEMA else {**fields, "schema": schema, FIELD: {"schema": schema}}
