"""What the callers of a run send, and the exact answers that tests/mesh/model.toml has for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.mesh.tools import result_of

FILES: Final = Path(__file__).parent
WORKER: Final = "worker"
SINGLE: Final = "single"
FROZEN: Final = "frozen"


def work(label: str) -> str:
    """Returns a message whose turn takes some twenty seconds: text, a tool, text."""
    return f"work {label}"


def silent(label: str) -> str:
    """Returns a message that the model does not answer for minutes."""
    return f"silent {label}"


def texts_of(label: str) -> Sequence[str]:
    """Returns the model's messages in the turn of `work`."""
    return (
        f"{label}: this needs a look into the files first, 少々お待ちください.",
        f"{label}: the files have it ({result_of(label)}), and so it is told, piece by piece.",
    )
