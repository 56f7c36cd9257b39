"""The shipped files outside the chart: Envoy's, the Dockerfile, Compose's."""

import json
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.deploy import tools
from tests.deploy.conftest import render
from turnkeeper.dev_credentials import Authority, general_name, spiffe_id

COMPOSE_CHECK = """
import json, pathlib, sys, yaml, jsonschema
document = yaml.safe_load(pathlib.Path(sys.argv[1]).read_text())
jsonschema.validate(document, json.loads(pathlib.Path(sys.argv[2]).read_text()))
json.dump(document, sys.stdout)
"""


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with `callers-tls` and `replicas-tls`."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority.new()
    of_callers, of_replicas = general_name("localhost"), x509.UniformResourceIdentifier(spiffe_id("envoy"))
    for name, in_certificate in (("callers-tls", of_callers), ("replicas-tls", of_replicas)):
        (folder / name).mkdir()
        certificate, key = authority.issued(name, names=[in_certificate], lifetime=timedelta(days=1))
        (folder / name / "tls.crt").write_bytes(certificate)
        (folder / name / "tls.key").write_bytes(key)
        (folder / name / "ca.crt").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    return folder


def check(envoy: Path) -> None:
    """Has a real Envoy check a filled-in file, with the files that it names."""
    tools.run(tools.ENVOY, "--mode", "validate", "-c", envoy)


def test_envoy_takes_the_shipped_file(certificates: Path, tmp_path: Path) -> None:
    folder = tools.DEPLOY / "envoy"
    examples = dict(re.findall(r"^([A-Z0-9_]+)=(\S+)$", (folder / "variables.env").read_text(), re.MULTILINE))
    examples |= {
        "SDS": str(tmp_path / "sds"),
        "CALLERS_TLS": str(certificates / "callers-tls"),
        "REPLICAS_TLS": str(certificates / "replicas-tls"),
    }
    (tmp_path / "sds").mkdir()
    for file in ("envoy.yaml", "sds/callers.yaml", "sds/replicas.yaml", "sds/replicas-ca.yaml"):
        filled = re.sub(r"\$\{([A-Z0-9_]+)\}", lambda name: examples[name[1]], (folder / file).read_text())
        (tmp_path / file).write_text(filled)
    check(tmp_path / "envoy.yaml")


def test_envoy_takes_the_file_of_the_chart(certificates: Path, tmp_path: Path) -> None:
    text = render(tools.CHART / "values" / "envoy.yaml").replace("/etc/envoy/sds", str(tmp_path))
    text = text.replace("/etc/envoy", str(certificates))
    for name, block in re.findall(r"^  ([\w-]+\.yaml): \|\n((?:(?: {4}.*)?\n)+)", text, re.MULTILINE):
        (tmp_path / name).write_text(re.sub(r"^ {4}", "", block, flags=re.MULTILINE))
    check(tmp_path / "envoy.yaml")


def test_the_dockerfile_has_nothing_to_complain_about() -> None:
    """But for images without a version: both are arguments, to be given with a digest."""
    tools.run(
        tools.TOOLS / "hadolint", "--failure-threshold", "warning", "--ignore", "DL3006", tools.DEPLOY / "Dockerfile"
    )


def test_compose_fits_its_schema_and_gives_replicas_more_time_than_they_take_to_drain() -> None:
    schema = tools.downloaded(tools.COMPOSE) / "schema" / "compose-spec.json"
    run = subprocess.run(
        [tools.TOOLS / "python", "-c", COMPOSE_CHECK, tools.DEPLOY / "compose.yaml", schema],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-1500:]
    services = json.loads(run.stdout)["services"]
    for number in (1, 2, 3):
        assert services[f"replica-{number}"]["stop_grace_period"] == "50s"
        assert services[f"replica-{number}"]["read_only"]
        assert services[f"mongo-{number}"]["secrets"] == ["mongo-key"]
