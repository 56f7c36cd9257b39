"""The chart: strictly valid with each file of values, its unit tests green, what it configures understood."""

import argparse
import re
import tomllib
from pathlib import Path

import pytest

from tests.deploy import tools
from tests.deploy.conftest import EVERYTHING, NEEDED, render
from turnkeeper import settings_sources
from turnkeeper.settings import Settings

STRICT = Path(__file__).with_name("strict.py")


@pytest.fixture(scope="session")
def definitions() -> list[Path]:
    """Returns the files that define the custom resources of the chart."""
    gateway, istio, envoy, prometheus = map(
        tools.downloaded, (tools.GATEWAY_API, tools.ISTIO, tools.ENVOY_GATEWAY, tools.PROMETHEUS)
    )
    return [
        *sorted((gateway / "config/crd/standard").glob("*.yaml")),
        istio / "kubernetes/customresourcedefinitions.gen.yaml",
        *sorted((envoy / "charts/gateway-helm/charts/crds/crds/generated").glob("*.yaml")),
        prometheus / "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
    ]


def test_the_manifests_are_strictly_valid(rendered: Path, definitions: list[Path]) -> None:
    output = tools.run(tools.TOOLS / "python", STRICT, tools.KUBERNETES, rendered, *definitions)
    kinds = {line.partition("/")[0] for line in output.splitlines()}
    assert kinds >= {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy", "ServiceAccount"}


@pytest.mark.parametrize(
    ("was", "is_"),
    [
        ("terminationGracePeriodSeconds:", "terminationGracePeriod:"),
        ("consecutive5xxErrors: 0", "consecutive5xxErrors: none"),
        ("kind: GRPCRoute", "kind: GRPCRouting"),
        ("maxUnavailable: 1", "maxUnavailable: [1]"),
    ],
)
def test_a_mistake_in_a_manifest_is_found(definitions: list[Path], tmp_path: Path, was: str, is_: str) -> None:
    text = render(EVERYTHING)
    assert was in text
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace(was, is_), encoding="utf-8")
    with pytest.raises(AssertionError, match="error: "):
        tools.run(tools.TOOLS / "python", STRICT, tools.KUBERNETES, broken, *definitions)


def test_helm_finds_nothing_to_complain_about() -> None:
    at = ("--kube-version", f"{tools.KUBERNETES}.0", "-f", str(NEEDED))
    tools.run(tools.helm(), "lint", "--strict", *at, tools.CHART)


def test_the_units_of_the_chart() -> None:
    output = tools.run(tools.unittest(), tools.CHART)
    assert re.search(r"Tests:\s+(\d+) passed, \1 total", re.sub(r"\x1b\[\d+m", "", output)), output


def test_the_server_understands_its_settings(rendered: Path, tmp_path: Path) -> None:
    block = re.search(r"turnkeeper\.toml: \|\n((?: {4}.*\n)+)", rendered.read_text(encoding="utf-8"))
    assert block
    file = tmp_path / "turnkeeper.toml"
    file.write_text(re.sub(r"^ {4}", "", block[1], flags=re.MULTILINE), encoding="utf-8")
    settings = settings_sources.load(argparse.Namespace(config=str(file)))
    assert isinstance(settings, Settings)
    assert settings.health_port == tomllib.loads(file.read_text())["health_port"] == 50052


def test_pods_are_replaced_when_a_file_changes_that_is_read_at_the_start() -> None:
    def checksum(*more: str) -> list[str]:
        return re.findall(r"checksum/start: (\w{64})", render(None, *more))

    unchanged = checksum()
    assert len(unchanged) == 1
    assert checksum("--set", "settings.lease=20s") != unchanged
    assert checksum("--set", "agents=[[agent]]") != unchanged
    assert checksum("--set", "limits=some") == checksum("--set", "limits=others"), "the file is watched"
