"""The lock belongs to the pyprojects, and names no place to install from."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
AGENTS_LOCK = "tests/bench/floors/agents.lock"
PROTOBUF_LOCK = "clients/python/protobuf7.lock"
PLOTS_LOCK = "tests/bench/soak/plots.lock"
DEPLOY_LOCKS = [
    f"{name}.lock" for name in ("tests/deploy/envoy", "tests/deploy/tools", "deploy/image", "deploy/image-build")
]


def requirements() -> list[Requirement]:
    """Every requirement that the service and the Python client declare, in all their groups."""
    entries: list[object] = []
    for path in (ROOT / "pyproject.toml", *ROOT.glob("clients/python/pyproject.toml")):
        project = tomllib.loads(path.read_text())
        entries += project["project"].get("dependencies", [])
        entries += [entry for group in project.get("dependency-groups", {}).values() for entry in group]
    # What is no text includes a group that is in the list itself. The client is installed from its folder.
    texts = [entry for entry in entries if isinstance(entry, str) and not entry.startswith("turnkeeper-client")]
    return [Requirement(entry) for entry in texts]


def test_every_requirement_is_locked_to_a_version_it_allows() -> None:
    text = (ROOT / "requirements.lock").read_text() + (ROOT / "requirements-boot.txt").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, flags=re.MULTILINE))
    stale = [
        str(requirement)
        for requirement in requirements()
        if not requirement.specifier.contains(locked.get(requirement.name.lower(), "0"), prereleases=True)
    ]
    assert not stale, f"run `make lock`: {stale}"


def test_the_floor_with_packages_of_its_own_has_our_versions_of_what_both_use() -> None:
    """Otherwise a benchmark would compare versions of grpc."""
    ours, theirs = (
        dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(), flags=re.MULTILINE))
        for name in ("requirements.lock", AGENTS_LOCK)
    )
    common = ours.keys() & theirs.keys()
    assert {"grpcio", "openai", "protobuf", "uvloop"} <= common
    assert {name: theirs[name] for name in common} == {name: ours[name] for name in common}, "run `make lock`"


def test_the_lock_has_hashes_and_no_host() -> None:
    for name in ("requirements.lock", "requirements-boot.txt", AGENTS_LOCK, PLOTS_LOCK, PROTOBUF_LOCK, *DEPLOY_LOCKS):
        text = (ROOT / name).read_text()
        pins = len(re.findall(r"^[a-z0-9-]+==", text, flags=re.MULTILINE))
        assert pins
        assert pins == len(re.findall(r"^[a-z0-9-]+==.*\\\n +--hash=sha256:", text, flags=re.MULTILINE))
        assert "://" not in text
        assert "--index-url" not in text
