"""Records what a client received, on disk before it is used: one JSON line each, with both clocks."""

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any, Self

CALLS = "calls.jsonl"
STREAMS = "streams.jsonl"
LOAD = "load.json"


class Recorder:
    """A file of records, appended to by this process alone. `tenant`: whose lines this recorder writes."""

    def __init__(self, path: Path) -> None:
        self.tenant = ""
        self._path = path
        self._file = -1
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def of(self, tenant: str) -> "Recorder":
        """Returns a recorder of this tenant's lines, in the same file and with the same numbers."""
        recorder = Recorder(self._path)
        recorder.tenant, recorder._file, recorder._numbers = tenant, self._file, self._numbers
        return recorder

    def number(self) -> int:
        """Returns a number that this recorder returns once."""
        return next(self._numbers)

    def line(self, what: str, **values: Any) -> None:
        """Writes a line with one system call: a killed client leaves whole lines."""
        record = {"line": what, "tenant": self.tenant, "wall": time.time(), "mono": time.monotonic(), **values}
        os.write(self._file, (json.dumps(record, ensure_ascii=False) + "\n").encode())
