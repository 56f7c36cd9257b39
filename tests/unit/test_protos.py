"""The contract's own checks do find what they are for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).resolve().parents[2] / "protos"
BUF = Path(sys.executable).with_name("buf")


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("string session_id = 1", "string conversation_id = 1", 'changed name from "session_id"'),
        ("string session_id = 1", "bytes session_id = 1", 'changed type from "string" to "bytes"'),
        ("rpc GetSession(", "rpc FetchSession(", '"GetSession"'),
    ],
)
def test_an_incompatible_change_is_refused(tmp_path: Path, before: str, after: str, complaint: str) -> None:
    image = tmp_path / "released.binpb"
    assert buf("build", str(PROTOS), "-o", str(image)).returncode == 0
    changed = tmp_path / "protos"
    shutil.copytree(PROTOS, changed)
    assert buf("breaking", str(changed), "--against", str(image)).returncode == 0

    session = changed / "turnkeeper/v1/session.proto"
    text = session.read_text()
    assert before in text
    session.write_text(text.replace(before, after))

    refused = buf("breaking", str(changed), "--against", str(image))
    assert refused.returncode != 0
    assert complaint in refused.stdout


def test_a_field_without_a_comment_is_refused(tmp_path: Path) -> None:
    changed = tmp_path / "protos"
    shutil.copytree(PROTOS, changed)
    session = changed / "turnkeeper/v1/session.proto"
    session.write_text(session.read_text() + "\n// A message.\nmessage Bare {\n  string field = 1;\n}\n")
    refused = buf("lint", str(changed))
    assert refused.returncode != 0
    assert 'Field "field" should have a non-empty comment' in refused.stdout
