"""`make deploy-check` runs this folder alone: it needs Go, and builds its tools at the first run."""

from pathlib import Path

import pytest

from tests.deploy import tools

EVERYTHING = tools.ROOT / "tests" / "deploy" / "everything.yaml"
"""Values with everything on that no file of values has."""
VALUES = (None, EVERYTHING, *sorted((tools.CHART / "values").glob("*.yaml")))
NEEDED = tools.CHART / "tests" / "values.yaml"


def render(values: Path | None, *more: str) -> str:
    """Returns the manifests of the chart, with these values."""
    files = [part for file in (NEEDED, values) if file for part in ("-f", str(file))]
    at = ("turnkeeper", str(tools.CHART), "-n", "turnkeeper", "--kube-version", f"{tools.KUBERNETES}.0")
    return tools.run(tools.helm(), "template", *at, *files, *more)


@pytest.fixture(scope="session", params=VALUES, ids=lambda values: values.stem if values else "defaults")
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the file with the manifests of one file of values."""
    values: Path | None = request.param
    file = tmp_path_factory.mktemp("chart") / f"{values.stem if values else 'defaults'}.yaml"
    file.write_text(render(values), encoding="utf-8")
    return file
