"""The files for Envoy that are shipped, with their documented variables filled in."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.chaos.programs import REPOSITORY

SHIPPED: Final = REPOSITORY / "deploy" / "envoy"
MAIN: Final = "envoy.yaml"
VARIABLES: Final = "variables.env"
_VARIABLE: Final = re.compile(r"\$\{(\w+)\}")
_DOCUMENTED: Final = re.compile(r"^(\w+)=", re.MULTILINE)


def filled(folder: Path, values: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the text of each file with its variables filled in, by its path in the folder.

    Raises ValueError if `values` are not exactly the documented ones, or if a file has another variable.
    """
    names = set(_DOCUMENTED.findall((folder / VARIABLES).read_text(encoding="utf-8")))
    if names != values.keys():
        raise ValueError(f"values are missing or unknown: {sorted(names ^ values.keys())}")
    files = sorted(file for file in folder.resolve().rglob("*.yaml") if file.is_file())
    texts = {str(file.relative_to(folder.resolve())): file.read_text(encoding="utf-8") for file in files}
    if unknown := sorted(set(_VARIABLE.findall("".join(texts.values()))) - names):
        raise ValueError(f"{VARIABLES} does not document {unknown}")
    return {name: _VARIABLE.sub(lambda name: values[name[1]], text) for name, text in texts.items()}


def write(folder: Path, values: Mapping[str, str], *, to: Path) -> Path:
    """Writes the files of the folder, filled in. Returns the path of the main one."""
    for name, text in filled(folder, values).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_text(text, encoding="utf-8")
    return to / MAIN


def differences(used: Path, values: Mapping[str, str], *, shipped: Path = SHIPPED) -> list[str]:
    """Returns the lines in which the files that Envoy used are not the shipped ones with these values.

    `used`: the main one. Envoy reads the others from beside it.
    """
    lines: list[str] = []
    for name, text in filled(shipped, values).items():
        file = used.parent / name
        there = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        changed = difflib.unified_diff(text.splitlines(), there, n=0, lineterm="")
        lines += [f"{name}: {line}" for line in changed if line[:3] not in ("---", "+++") and line[:2] != "@@"]
    return lines
