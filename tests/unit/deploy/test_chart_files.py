"""The chart's list of calls by how long they take; `make deploy-check` checks what it renders."""

import re
from pathlib import Path
from typing import Final

from tests.unit.deploy.calls import methods, paths
from tests.unit.docs.pages import reference

TEMPLATES: Final = Path(__file__).resolve().parents[3] / "deploy" / "helm" / "turnkeeper" / "templates"
HELPERS: Final = (TEMPLATES / "_helpers.tpl").read_text(encoding="utf-8")


def listed(name: str) -> set[str]:
    block = re.search(rf'define "turnkeeper\.{name}" -}}}}\n((?:- .*\n)+)', HELPERS)
    assert block
    return {f"/turnkeeper.v1.{line.removeprefix('- ')}" for line in block[1].splitlines()}


def test_each_stream_and_each_wait_is_in_its_list() -> None:
    assert listed("streams") == paths()
    assert listed("waits") == paths(waits=True)


def test_a_gateway_has_a_route_for_each_service() -> None:
    services = re.search(r"range \$service := list ((?:\"\w+\" ?)+)}}", (TEMPLATES / "gateway.yaml").read_text())
    assert services
    ours = {method.containing_service.name for method in methods()}
    assert {f"{name}Service" for name in re.findall(r'"(\w+)"', services[1])} == ours


def test_pods_are_scaled_by_metrics_that_there_are() -> None:
    names = re.findall(r"name: (turnkeeper_\w+)", (TEMPLATES / "availability.yaml").read_text(encoding="utf-8"))
    exported = {
        row.replace(".", "_") for row in re.findall(r"^\| `(turnkeeper\.[\w.]+)` \|", reference("telemetry"), re.M)
    }
    assert len(names) == 2
    assert set(names) <= exported
