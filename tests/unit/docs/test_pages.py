"""Pages lead where they say, and speak of nothing that is not in them."""

import re
from pathlib import Path

import pytest

from tests.unit.docs.pages import DOCS, PAGES, ROOT

LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
FENCE = re.compile(r"```.*?```", re.DOTALL)
CODE = re.compile(r"```\w+\n(.*?)```", re.DOTALL)
PRINTS_DELTAS = re.compile(r"content_delta\.text|contentDelta|ContentDelta\(\)")
FOREIGN = re.compile(r"\.\./shared|/work/|/root/|/home/|/usr/local/")


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        if target.startswith(("https://", "http://")):
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), link
        assert there.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(there), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_no_place_of_a_machine(page: Path) -> None:
    assert not FOREIGN.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_program_that_shows_deltas_itself_has_a_rule_for_one_that_begins_anew(page: Path) -> None:
    shows = [code for code in CODE.findall(page.read_text(encoding="utf-8")) if PRINTS_DELTAS.search(code)]
    assert [code for code in shows if not re.search("restart", code, re.IGNORECASE)] == []


def test_every_page_can_be_found_from_the_index() -> None:
    index = DOCS / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(index.read_text())}
    pages = {page for page in DOCS.rglob("*.md") if page != index and page.parent.name != "decisions"}
    assert {str(page.relative_to(DOCS)) for page in pages - linked} == set()


def test_every_decision_has_a_number_of_its_own_and_is_listed() -> None:
    files = sorted((DOCS / "decisions").glob("0*.md"))
    assert len({file.name[:4] for file in files}) == len(files)
    assert all(file.read_text().startswith(f"# {int(file.name[:4])}. ") for file in files)
    listed = (DOCS / "decisions/README.md").read_text()
    assert {file.name: 1 for file in files} == {file.name: listed.count(f"({file.name})") for file in files}
