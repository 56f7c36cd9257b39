"""Runs the steps of the Dockerfile without a container engine: a stage is a folder, a step runs in it as its root.

What an engine adds and this does not: the base images themselves (here a Debian of `debootstrap` stands for both),
layers, and the isolation of the network.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.deploy import tools

SUITE: Final = "bookworm"
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_PASSED_ON: Final = re.compile(r"(PIP|SSL|HTTPS?|NO)_\w+", re.IGNORECASE)
"""Variables by which this machine finds its package index."""
_CHROOT: Final = "/usr/sbin/chroot"
_IN_FOLDER: Final = "import os, sys; os.chdir(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])"
_OF_MACHINE: Final = ("etc/resolv.conf", "etc/hosts", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt")


@dataclass(slots=True)
class Stage:
    """One stage of the image, built so far."""

    root: Path
    folder: str = "/"
    variables: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()

    def inside(self, *command: str, read_only: bool = False, variables: Mapping[str, str] | None = None) -> list[str]:
        """Returns the command that runs another one in the stage, as its user; read-only but for an empty /tmp."""
        root = str(self.root)
        mounts = [f"mount --bind {root} {root}", f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
        if read_only:
            mounts += [f"mount -t tmpfs tmpfs {root}/tmp", f"mount -o remount,bind,ro {root}"]
        known = {"PATH": _PATH, "HOME": "/tmp", **self.variables, **(variables or {})}
        words = ["env", "-i", *(f"{name}={value}" for name, value in known.items())]
        words += [_CHROOT, f"--userspec={self.user}", root]
        change = [
            "/usr/bin/python3",
            "-c",
            "import os,sys; os.chdir(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])",
        ]
        script = " && ".join([*mounts, 'exec "$@"'])
        return ["unshare", "--mount", "sh", "-c", script, "sh", *words, *change, self.folder, *command]


def build(dockerfile: Path, context: Path, base: Path, folder: Path) -> Stage:
    """Runs every step. Returns the last stage. Raises CalledProcessError if a step fails."""
    stages: dict[str, Stage] = {}
    stage = Stage(base)
    for verb, rest in _steps(dockerfile.read_text(encoding="utf-8")):
        if verb == "FROM":
            name = rest.partition(" AS ")[2] or "last"
            stage = stages[name] = Stage(folder / name)
            subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(stage.root)], check=True)
        else:
            _step(verb, rest, stage, stages, context)
    return stage


def _step(verb: str, rest: str, stage: Stage, stages: Mapping[str, Stage], context: Path) -> None:
    match verb:
        case "RUN":
            passed_on = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
            subprocess.run(stage.inside(*json.loads(rest), variables=passed_on), check=True, stdout=subprocess.DEVNULL)
        case "COPY":
            _copy(rest.split(), stage, stages, context)
        case "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "ENV":
            stage.variables |= dict(part.split("=", 1) for part in rest.split())
        case "USER":
            stage.user = rest
        case "ENTRYPOINT" | "CMD":
            setattr(stage, "entrypoint" if verb == "ENTRYPOINT" else "command", json.loads(rest))
        case "ARG" | "EXPOSE" | "STOPSIGNAL":
            pass
        case _:
            raise ValueError(f"this step is not known here: {verb}")


def _copy(words: Sequence[str], stage: Stage, stages: Mapping[str, Stage], context: Path) -> None:
    """Copies files and folders as COPY does: of a folder its contents."""
    source = context
    if words[0].startswith("--from="):
        source, words = stages[words[0].removeprefix("--from=")].root, words[1:]
    *names, target = words
    into = stage.root / os.path.join(stage.folder, target).lstrip("/")  # noqa: PTH118 - the target may be absolute
    for name in names:
        path = source / name.lstrip("/")
        if path.is_dir():
            shutil.copytree(path, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, into)


def _steps(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for step in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        verb, _, rest = step.partition(" ")
        yield verb, rest


def debian() -> Path:
    """Returns a folder with a small Debian and its Python, which is made at the first call."""
    folder = tools.BUILD / "debian"
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        program = tools.need("debootstrap", "install it, and run as root")
        packages = "python3,python3-venv,ca-certificates"
        command = [program, "--variant=minbase", f"--include={packages}", SUITE, str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=tools.BUILD_TIME)
        for name in _OF_MACHINE:
            if Path("/", name).exists():
                shutil.copy(Path("/", name), folder / name)
        (folder / "made").touch()
    return folder
