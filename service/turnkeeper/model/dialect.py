"""What model servers send in their own words, and what it means here: the data is in `dialect.toml`."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from turnkeeper.domain.message import FinishReason
from turnkeeper.model.failure import Reason

_DATA: Final = tomllib.loads(Path(__file__).with_name("dialect.toml").read_text(encoding="utf-8"))

FINISH: Final[Mapping[str, FinishReason]] = {
    word: FinishReason[reason] for reason, words in _DATA["finish"].items() for word in words
}
"""Why an answer ended, by the server's word for it in small letters."""
CODES: Final[Mapping[str, Reason]] = {
    word: Reason[reason] for reason, words in _DATA["codes"].items() for word in words
}
"""The meaning of an error's code, type or status, in small letters."""
SENTENCES: Final[Mapping[Reason, re.Pattern[str]]] = {
    Reason[reason]: re.compile("|".join(f"(?:{part})" for part in parts), re.IGNORECASE)
    for reason, parts in _DATA["sentences"].items()
}
"""The meaning of an error's text, in the order of the file."""
