"""The programs that `make deploy-check` uses: Go modules of fixed versions and hashes, built in build/deploy."""

import functools
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOY: Final = ROOT / "deploy"
CHART: Final = DEPLOY / "helm" / "turnkeeper"
BUILD: Final = ROOT / "build" / "deploy"
BIN: Final = BUILD / "bin"
TOOLS: Final = ROOT / "build" / "deploy-tools" / "bin"
"""What tests/deploy/tools.lock has installed."""
ENVOY: Final = ROOT / "build" / "envoy" / "bin" / "envoy"
MONGOSH: Final = "mongosh@2.12.0"
KUBERNETES: Final = "1.36"
"""The version whose schemas manifests are checked with."""
BUILD_TIME: Final = 1_200


@dataclass(frozen=True, slots=True)
class Module:
    """A Go module, downloaded as it is: its hash is checked."""

    path: str
    version: str
    hash: str


HELM: Final = Module("helm.sh/helm/v3", "v3.22.0", "h1:n1if5iQgHYsujPAcO5oonH/KiSNUmqmUF0iGVjSF3AU=")
UNITTEST: Final = Module(
    "github.com/helm-unittest/helm-unittest", "v1.1.2", "h1:r1Ah6Pr3h4kqvd65RN+r0FNTIGrJa+P9rcMyzwHEXXQ="
)
HEALTH_PROBE: Final = Module(
    "github.com/grpc-ecosystem/grpc-health-probe", "v0.4.63", "h1:OdUQzn9CIpU829ibMclRHF6M622KJRxx6ok9EcOf5to="
)
GATEWAY_API: Final = Module("sigs.k8s.io/gateway-api", "v1.6.3", "h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc=")
ISTIO: Final = Module("istio.io/api", "v1.32.0", "h1:37mJvg9I0biYZAEQF+MATs4FNeCpXEIVO3LFpVb6iNM=")
ENVOY_GATEWAY: Final = Module(
    "github.com/envoyproxy/gateway", "v1.9.1", "h1:vAVp6/AlBXJ1aOhp1mxL7fNEzVEfjADUguUhm2wzxQY="
)
PROMETHEUS: Final = Module(
    "github.com/prometheus-operator/prometheus-operator", "v0.85.0", "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="
)
COMPOSE: Final = Module(
    "github.com/compose-spec/compose-go/v2", "v2.16.2", "h1:pTp1DqQwJzFd85GzlWsSszKA1ABrV/ySqsClujIcWA8="
)


def need(program: str, remedy: str) -> str:
    """Returns the path of a program of the machine. Without it the run ends with one sentence."""
    path = shutil.which(program)
    if path is None:
        pytest.exit(f"make deploy-check needs {program}: {remedy}", returncode=2)
    return path


@functools.cache
def downloaded(module: Module) -> Path:
    """Returns the folder of a module. Raises RuntimeError if its hash is another one."""
    go = need("go", "install Go 1.26 or later")
    run = subprocess.run(
        [go, "mod", "download", "-json", f"{module.path}@{module.version}"],
        cwd=_made(BUILD),
        capture_output=True,
        text=True,
        check=False,
    )
    answer = json.loads(run.stdout)
    if answer.get("Sum") != module.hash:
        raise RuntimeError(f"{module.path}@{module.version} is not what it was: {answer.get('Error') or answer['Sum']}")
    return Path(answer["Dir"])


@functools.cache
def helm() -> Path:
    """Returns Helm, which is built at the first call."""
    return _built("helm", HELM, "./cmd/helm")


@functools.cache
def unittest() -> Path:
    """Returns the runner of the chart's unit tests, which is built at the first call."""
    return _built("helm-unittest", UNITTEST, "./cmd/helm-unittest")


@functools.cache
def health_probe() -> Path:
    """Returns the probe of Kubernetes before it checked gRPC's health itself. It is built at the first call."""
    return _built("grpc-health-probe", HEALTH_PROBE, ".")


def _built(name: str, module: Module, package: str) -> Path:
    """Builds a program inside its module: `go install` refuses modules that replace others."""
    program = BIN / f"{name}-{module.version}"
    if not program.exists():
        _made(BIN)
        go = need("go", "install Go 1.26 or later")
        subprocess.run(
            [go, "build", "-mod=readonly", "-buildvcs=false", "-o", str(program), package],
            cwd=downloaded(module),
            env={**os.environ, "GOFLAGS": ""},
            timeout=BUILD_TIME,
            check=True,
        )
    return program


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(*command: str | Path, **options: str) -> str:
    """Runs a program. Returns its output; fails with all that it printed if it ends with another status than 0."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env={**os.environ, **options}
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@functools.cache
def mongosh() -> Path:
    """Returns MongoDB's shell, which is installed at the first call."""
    folder = BUILD / "mongosh"
    program = folder / "node_modules" / ".bin" / "mongosh"
    if not program.exists():
        npm = need("npm", "install Node 20 or later")
        install = ("install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(_made(folder)))
        subprocess.run([npm, *install, MONGOSH], check=True, stdout=subprocess.DEVNULL, timeout=BUILD_TIME)
    return program
