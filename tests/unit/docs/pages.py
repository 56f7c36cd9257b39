"""Reading our own pages."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("clients/*/README.md"))]


def reference(name: str) -> str:
    return (DOCS / f"reference/{name}.md").read_text(encoding="utf-8")


def table(text: str, *head: str) -> list[list[str]]:
    """The rows of the first table with these columns, backticks gone."""
    lines = text.splitlines()
    start = [line.replace("`", "") for line in lines].index(f"| {' | '.join(head)} |") + 2
    rows: list[list[str]] = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\) \| ", line.strip()[2:-2])
        rows.append([cell.replace("`", "").strip() for cell in cells])
    return rows


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
