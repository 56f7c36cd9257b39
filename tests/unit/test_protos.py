"""The contract's own checks do find what they are for."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PROTOS = Path(__file__).resolve().parents[2] / "protos"
BUF = Path(sys.executable).with_name("buf")


NAMES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
LANGUAGES = {
    "turnkeeper.v1": {
        "go_package": "turnkeeper.dev/gen/go/turnkeeper/v1;turnkeeperv1",
        "java_package": "dev.turnkeeper.v1",
        "java_multiple_files": True,
        "csharp_namespace": "Turnkeeper.V1",
        "php_namespace": "Turnkeeper\\V1",
        "ruby_package": "Turnkeeper::V1",
        "objc_class_prefix": "TKV",
        "swift_prefix": "TKV",
    },
    "turnkeeper.tools.v1": {
        "go_package": "turnkeeper.dev/gen/go/turnkeeper/tools/v1;toolsv1",
        "java_package": "dev.turnkeeper.tools.v1",
        "java_multiple_files": True,
        "csharp_namespace": "Turnkeeper.Tools.V1",
        "php_namespace": "Turnkeeper\\Tools\\V1",
        "ruby_package": "Turnkeeper::Tools::V1",
        "objc_class_prefix": "TKT",
        "swift_prefix": "TKT",
    },
}
"""Where each package's generated code stands in each language."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileDescriptorProto]:
    """Every proto and what it imports, by name, imports first: plain protoc has nothing but our own folder."""
    image = tmp_path_factory.mktemp("protos") / "all.binpb"
    compiler = (
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "--include_imports",
        "-I",
        str(PROTOS),
        f"--descriptor_set_out={image}",
    )
    subprocess.run([*compiler, *NAMES], check=True)
    return {file.name: file for file in FileDescriptorSet.FromString(image.read_bytes()).file}


@pytest.mark.parametrize("name", NAMES)
def test_every_proto_has_the_options_of_every_language(name: str, files: dict[str, FileDescriptorProto]) -> None:
    file = files[name]
    options = {option.name: value for option, value in file.options.ListFields()}
    words = Path(name).stem.split("_")
    outer_class = "".join(word.capitalize() for word in words) + "Proto"
    assert options == {**LANGUAGES[file.package], "java_outer_classname": outer_class}


@pytest.mark.parametrize("name", NAMES)
def test_the_outer_class_of_java_has_a_name_of_its_own(name: str, files: dict[str, FileDescriptorProto]) -> None:
    """protoc refuses another one for Java. Each message, enum and service is a file of that name beside it."""
    file = files[name]
    in_package = [other for other in files.values() if other.package == file.package]
    names = [other.options.java_outer_classname for other in in_package]
    for other in in_package:
        names += [message.name for message in other.message_type]
        names += [enum.name for enum in other.enum_type]
        names += [service.name for service in other.service]
    taken = [class_name.lower() for class_name in names]
    assert taken.count(file.options.java_outer_classname.lower()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_proto_imports_only_our_own_protos_and_those_that_every_protoc_brings(
    name: str, files: dict[str, FileDescriptorProto]
) -> None:
    assert all(imported.startswith(("turnkeeper/", "google/protobuf/")) for imported in files[name].dependency)


@pytest.mark.parametrize(
    ("message", "field", "rules"),
    [
        ("SendMessageRequest", "request_id", {"required": True, "max_length": 128}),
        ("SendMessageRequest", "content", {"required": True, "max_items": 64}),
        ("SendMessageRequest", "session_id", {"pattern": "[A-Za-z0-9._:-]{1,128}"}),
        ("SendMessageRequest", "wait", {"max_seconds": 120}),
        ("TurnLimits", "max_iterations", {"min_value": 0}),
        ("CreateSessionRequest", "idle_ttl", {"not_implemented": True}),
    ],
)
def test_the_rules_of_a_field_can_be_read_without_our_generated_code(
    message: str, field: str, rules: dict[str, object], files: dict[str, FileDescriptorProto]
) -> None:
    pool: Any = DescriptorPool()
    for file in files.values():
        pool.Add(file)
    extension = pool.FindExtensionByName("turnkeeper.v1.rules")
    options_class = GetMessageClass(pool.FindMessageTypeByName("google.protobuf.FieldOptions"))
    described = pool.FindMessageTypeByName(f"turnkeeper.v1.{message}").fields_by_name[field]
    options: Any = options_class.FromString(described.GetOptions().SerializeToString())
    assert {part.name: value for part, value in options.Extensions[extension].ListFields()} == rules


@pytest.mark.parametrize(
    ("language", "file", "text"),
    [
        ("java", "dev/turnkeeper/v1/Session.java", "package dev.turnkeeper.v1;"),
        ("kotlin", "dev/turnkeeper/v1/SessionKt.kt", "package dev.turnkeeper.v1"),
        ("csharp", "Session.cs", "namespace Turnkeeper.V1 {"),
        ("php", "Turnkeeper/V1/Session.php", "namespace Turnkeeper\\V1;"),
        ("ruby", "turnkeeper/v1/session_pb.rb", "module Turnkeeper\n  module V1\n"),
        ("objc", "turnkeeper/v1/Session.pbobjc.h", "TKVSession "),
        ("cpp", "turnkeeper/v1/session.pb.h", "namespace v1 {"),
    ],
)
@pytest.mark.skipif(
    shutil.which("protoc") is None,
    reason="needs protoc: apt-get install protobuf-compiler",
)
def test_plain_protoc_generates_a_language(language: str, file: str, text: str, tmp_path: Path) -> None:
    subprocess.run(["protoc", "-I", str(PROTOS), f"--{language}_out={tmp_path}", *NAMES], check=True)
    assert text in (tmp_path / file).read_text()


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
