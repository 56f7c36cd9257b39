"""Write the generated parts of the reference: from the protos' comments and rules, and from the settings.

    python docs/generate.py            write them
    python docs/generate.py --check    write nothing; exit 1 when a page is not current

A page keeps its own words around the parts, each between `<!-- generated: name -->` and `<!-- /generated -->`.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
    ServiceDescriptorProto,
)

from turnkeeper import settings
from turnkeeper.codes import Code
from turnkeeper.domain.event import KINDS
from turnkeeper.errors_by_code import leaves
from turnkeeper.pb.v1 import error_pb2
from turnkeeper.rpc import agents, approvals, audit, chat, operations, sessions
from turnkeeper.rpc.access import AccessRules
from turnkeeper.rpc.server import OUR_FILES
from turnkeeper.rpc.status import advice, stream_retry_after
from turnkeeper.rpc.validation import RULES, Rule
from turnkeeper.terminal import reference

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs/reference"
_CALLERS = (sessions.SessionService, chat.ChatService, approvals.ApprovalService, agents.AgentService)
_OPERATORS = (audit.AuditService, operations.OperatorService)
SERVICERS: Mapping[str, type[Any]] = {servicer.__name__: servicer for servicer in (*_CALLERS, *_OPERATORS)}
PREVIEWS = {"content_delta": True, "tool_progress": True}
"""Whether each preview is sent."""
REPEATS = {
    MethodOptions.NO_SIDE_EFFECTS: "Changes nothing: repeat it freely.",
    MethodOptions.IDEMPOTENT: "Safe to repeat.",
}
Place = tuple[int, ...]
"""Where a part of a file is; see SourceCodeInfo in descriptor.proto."""


@dataclass(frozen=True)
class File:
    """A proto with the comments of its parts, found by their places."""

    proto: FileDescriptorProto
    comments: Mapping[Place, str]

    def said(self, *path: int) -> str:
        return self.comments.get(path, "")

    def messages(self) -> Iterator[tuple[DescriptorProto, int]]:
        return ((message, place) for place, message in enumerate(self.proto.message_type))

    def fields(self, place: int) -> Iterator[tuple[FieldDescriptorProto, str]]:
        """Each field of the message at this place, with its comment."""
        for number, field in enumerate(self.proto.message_type[place].field):
            yield field, self.said(4, place, 2, number)


@cache
def protos() -> Mapping[str, File]:
    """Our files by their short name, in the order of their directory."""
    source = ROOT / "protos"
    names = sorted(str(path.relative_to(source)) for path in source.glob("turnkeeper/v1/*.proto"))
    with tempfile.TemporaryDirectory(prefix="turnkeeper-docs-") as folder:
        out = Path(folder) / "all.binpb"
        options = ("--include_source_info", f"--descriptor_set_out={out}")
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", str(source), *options, *names], check=True)
        found = FileDescriptorSet.FromString(out.read_bytes())
    return {
        Path(file.name).stem: File(
            file,
            {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location},
        )
        for file in found.file
    }


@cache
def messages() -> Mapping[str, tuple[File, int]]:
    """Every message by its name: its file, and its place there."""
    return {message.name: (file, place) for file in protos().values() for message, place in file.messages()}


def main() -> int:
    """Write or compare every page; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    stale = [page for page, text in pages().items() if page.read_text(encoding="utf-8") != text]
    for page in stale:
        print(f"{'differs' if check else 'written'}: {page.relative_to(ROOT)}")
        if not check:
            page.write_text(pages()[page], encoding="utf-8")
    if check and stale:
        print("the reference is not current: run `make docs` and commit what it writes")
        return 1
    return 0


@cache
def pages() -> Mapping[Path, str]:
    """Every page with generated parts, as it should be."""
    found: dict[Path, str] = {}
    for page in sorted(REFERENCE.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if "<!-- generated: " in text:
            found[page] = re.sub(
                r"(<!-- generated: (\w+) -->\n).*?(<!-- /generated -->)",
                lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}",
                text,
                flags=re.DOTALL,
            )
    return found


# --- rpcs.md -------------------------------------------------------------------------------------------------------


def services() -> Iterator[tuple[File, ServiceDescriptorProto]]:
    """Our four services, in the order of SERVICERS."""
    by_name = {service.name: (file, service) for file in protos().values() for service in file.proto.service}
    return (by_name[name] for name in SERVICERS)


def works(service: str, method: str) -> bool:
    """The servicer has the method of our own; the generated one answers UNIMPLEMENTED."""
    ours = (kind for kind in SERVICERS[service].__mro__ if kind.__module__.startswith("turnkeeper.rpc."))
    return any(method in vars(kind) for kind in ours)


def rpcs() -> str:
    parts: list[str] = []
    for file, service in services():
        parts.append(f"## {service.name}\n\n{file.said(6, 0)}\n")
        for number, method in enumerate(service.method):
            if works(service.name, method.name):
                parts.append(_rpc(method, file.said(6, 0, 2, number)))
        names = [method.name for method in service.method if not works(service.name, method.name)]
        if names:
            parts.append(f"Later: {', '.join(f'`{name}`' for name in names)}. They answer `NOT_IMPLEMENTED`.\n")
    return "\n".join(parts)


def _rpc(method: MethodDescriptorProto, said: str) -> str:
    shape = "Server stream" if method.server_streaming else "Unary"
    request, response = (name.rpartition(".")[2] for name in (method.input_type, method.output_type))
    return "\n".join(
        (
            f"### {method.name}\n",
            f"{paragraphs(said)}\n",
            f"{shape}. {REPEATS[method.options.idempotency_level]}\n",
            f"`{request}`\n",
            table(("field", "type", "rule", "meaning"), _request_rows(request)),
            f"`{response}`\n",
            table(("field", "type", "meaning"), _field_rows(response)),
        )
    )


def _request_rows(name: str) -> Iterator[Sequence[str]]:
    rules = RULES.get(name, {})
    file, place = messages()[name]
    for field, said in file.fields(place):
        yield f"`{field.name}`", _type(field), _rule(rules.get(field.name)), flat(said)
        for path, rule in rules.items():
            parent, _, child = path.partition(".")
            if parent == field.name and child:
                inner, comment = _field_of(field.type_name.rpartition(".")[2], child)
                yield f"`{path}`", _type(inner), _rule(rule), flat(comment)


def _field_of(message: str, name: str) -> tuple[FieldDescriptorProto, str]:
    file, place = messages()[message]
    return next((field, said) for field, said in file.fields(place) if field.name == name)


def _rule(rule: Rule | None) -> str:
    if rule is None:
        return ""
    parts = (
        (rule.required, "required"),
        (rule.not_implemented, "later: leave it unset"),
        (rule.pattern, f"matches `{rule.pattern.pattern if rule.pattern else ''}`"),
        (rule.max_length, f"at most {rule.max_length:,} characters"),
        (rule.max_items, f"at most {rule.max_items:,} entries"),
        (rule.min_value is not None, f"at least {rule.min_value}"),
        (rule.max_seconds, f"0 to {rule.max_seconds} s"),
    )
    return ", ".join(text for holds, text in parts if holds)


# --- messages.md ---------------------------------------------------------------------------------------------------


def shared() -> str:
    """The messages and enums of requests and responses, but not these themselves, nor events."""
    parts: list[str] = []
    for name in ("session", "chat", "message", "approval", "agent", "rules", "access"):
        file = protos()[name]
        for message, place in file.messages():
            if not message.name.endswith(("Request", "Response")) or message.name == "ToolRequest":
                rows = table(("field", "type", "meaning"), _field_rows(message.name))
                parts.append(f"### {message.name}\n\n{flat(file.said(4, place))}\n\n{rows}")
    return "\n".join(parts)


def enums() -> str:
    """Every enum but the error codes, which have a page of their own."""
    parts: list[str] = []
    for file in protos().values():
        for place, enum in enumerate(file.proto.enum_type):
            if enum.name != "SessionErrorCode":
                parts.append(_enum(file, enum, place))
    return "\n".join(parts)


def _enum(file: File, enum: EnumDescriptorProto, place: int) -> str:
    rows = [
        (str(value.number), f"`{value.name}`", flat(file.said(5, place, 2, number)))
        for number, value in enumerate(enum.value)
    ]
    return f"### {enum.name}\n\n{flat(file.said(5, place))}\n\n{table(('number', 'name', 'meaning'), rows)}"


def _field_rows(name: str) -> Iterator[Sequence[str]]:
    file, place = messages()[name]
    for field, said in file.fields(place):
        yield f"`{field.name}`", _type(field), flat(said)


# --- events.md -----------------------------------------------------------------------------------------------------


def sent(event: str) -> bool:
    return event in KINDS or PREVIEWS.get(event, False)


def event_list() -> str:
    file, place = messages()["Event"]
    rows = [
        (f"[`{field.name}`](#{field.name})", kind, "yes" if sent(field.name) else "later", when)
        for field, said in file.fields(place)
        if field.HasField("oneof_index")
        for kind, _, when in [_without_notes(said).partition(": ")]
    ]
    return table(("event", "kind", "sent", "when"), rows)


def event_fields() -> str:
    file, place = messages()["Event"]
    parts: list[str] = []
    for field, _ in file.fields(place):
        if field.HasField("oneof_index"):
            name = field.type_name.rpartition(".")[2]
            own, at = messages()[name]
            note = "" if sent(field.name) else " Not sent yet."
            rows = table(("field", "type", "meaning"), _field_rows(name))
            parts.append(f"### {field.name}\n\n{flat(own.said(4, at))}{note}\n\n{rows}")
    return "\n".join(parts)


def _without_notes(said: str) -> str:
    """`Durable. Not sent yet.` → `Durable`: the table has a column for it."""
    return flat(said).replace("Not sent yet.", "").strip().removesuffix(".") if "Not sent" in said else flat(said)


# --- errors.md -----------------------------------------------------------------------------------------------------


def error_codes() -> str:
    """Returns the table of all codes, with the advice that each carries after a unary call and on a stream."""
    file = protos()["error"]
    place, codes = next((n, enum) for n, enum in enumerate(file.proto.enum_type) if enum.name == "SessionErrorCode")
    comments = {value.number: flat(file.said(5, place, 2, n)) for n, value in enumerate(codes.value)}
    rows = (
        (str(code.value), f"`{code.name}`", leaves()[code].family.name, *advices, comments[code.value])
        for code in Code
        for advices in ((_advice(code), _advice(code, on_stream=True)),)
    )
    return table(("number", "code", "gRPC status", "unary", "on a stream", "meaning"), rows)


def _advice(code: Code, *, on_stream: bool = False) -> str:
    number = error_pb2.RetryAdvice.ValueType(advice(code, on_stream=on_stream))
    name = error_pb2.RetryAdvice.Name(number).removeprefix("RETRY_ADVICE_")
    wait = stream_retry_after(code) if on_stream else None
    return f"{name}, after {wait.total_seconds():g} s" if wait else name


# --- settings.md, status.md ----------------------------------------------------------------------------------------


def settings_table() -> str:
    rows = (
        (
            f"`{settings.flag_of(name)}`",
            " or ".join(f"`{variable}`" for variable in settings.variables_of(name)),
            f"`{default}`" if (default := settings.shown(field.default)) else "none",
            "; one of: ".join(filter(None, (field.description, ", ".join(settings.choices_of(name))))),
        )
        for name, field in settings.Settings.model_fields.items()
    )
    return table(("flag", "variable", "default", "meaning"), rows)


def status() -> str:
    rows = (
        (service.name, method.name, "works" if works(service.name, method.name) else "later")
        for _, service in services()
        for method in service.method
    )
    return table(("service", "rpc", "status"), rows)


def later_fields() -> str:
    rows = [
        (f"`{name}.{path}`", flat(_field_of(name, path)[1]))
        for name, rules in RULES.items()
        for path, rule in rules.items()
        if rule.not_implemented
    ]
    file, place = messages()["Part"]
    rows += [(f"`Part.{field.name}`", flat(said)) for field, said in file.fields(place) if field.name != "text"]
    return table(("field", "what it will be"), rows)


# --- words ---------------------------------------------------------------------------------------------------------

_TYPES = {
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_INT32: "int32",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_UINT32: "uint32",
}


def _type(field: FieldDescriptorProto) -> str:
    name = _TYPES.get(field.type) or field.type_name.rpartition(".")[2]
    if name.endswith("Entry"):
        return "map<string, string>"
    return f"repeated {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


def paragraphs(said: str) -> str:
    return "\n\n".join(textwrap.fill(" ".join(part.split()), 120) for part in said.split("\n\n"))


def flat(said: str) -> str:
    """One line of Markdown that may stand in a table."""
    return " ".join(said.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return "No fields.\n"
    return "\n".join((f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines, ""))


PARTS: Mapping[str, Callable[[], str]] = {
    "commands": reference.commands,
    "connection": reference.connection_flags,
    "rpcs": rpcs,
    "messages": shared,
    "enums": enums,
    "event_list": event_list,
    "event_fields": event_fields,
    "error_codes": error_codes,
    "settings": settings_table,
    "status": status,
    "later_fields": later_fields,
    "access": lambda: table(*AccessRules(OUR_FILES).matrix()),
}

if __name__ == "__main__":
    sys.exit(main())
