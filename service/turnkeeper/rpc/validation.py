"""Checks requests against the rules of the protos: the option `turnkeeper.v1.rules` of each field.

The rules are compiled once, when this module is imported. The reference is made from them as well.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from turnkeeper.errors import InvalidRequest, NotImplementedYet
from turnkeeper.pb.v1 import agent_pb2, approval_pb2, audit_pb2, chat_pb2, operator_pb2, rules_pb2, session_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What one field must be: `turnkeeper.v1.FieldRules` with its pattern compiled; the proto explains the parts."""

    required: bool
    pattern: re.Pattern[str] | None
    max_length: int
    max_items: int
    min_value: int | None
    max_seconds: int
    not_implemented: bool


def _rules_of(message: Descriptor, prefix: str = "") -> Iterator[tuple[str, Rule]]:
    """Yields the path and the rule of each field that has one, a message's own fields behind it."""
    for field in message.fields:
        options = field.GetOptions()
        if options.HasExtension(rules_pb2.rules):
            yield prefix + field.name, _compile(options.Extensions[rules_pb2.rules])
        if _is_ours(field):
            yield from _rules_of(field.message_type, f"{prefix}{field.name}.")


def _compile(rules: rules_pb2.FieldRules) -> Rule:
    return Rule(
        required=rules.required,
        pattern=re.compile(rules.pattern) if rules.pattern else None,
        max_length=rules.max_length,
        max_items=rules.max_items,
        min_value=rules.min_value if rules.HasField("min_value") else None,
        max_seconds=rules.max_seconds,
        not_implemented=rules.not_implemented,
    )


def _is_ours(field: FieldDescriptor) -> bool:
    """Returns True for a single message of our own protos."""
    message = field.message_type
    return message is not None and not field.is_repeated and message.file.package == rules_pb2.DESCRIPTOR.package


RULES: Mapping[str, Mapping[str, Rule]] = {
    method.input_type.name: rules
    for file in (session_pb2, chat_pb2, approval_pb2, agent_pb2, audit_pb2, operator_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if (rules := dict(_rules_of(method.input_type)))
}
"""The rules of every request that has any, by its name; each by the path of its field."""


def check(request: Message) -> None:
    """Raises InvalidRequest that names every field at fault, or NotImplementedYet for a field of a later release."""
    problems: dict[str, str] = {}
    rules = RULES.get(request.DESCRIPTOR.name, {})
    for path, rule in rules.items():
        has_parent, value = _at(request, path)
        if not has_parent:
            continue
        if rule.not_implemented and value:
            raise NotImplementedYet(
                f"The field {path} comes with a later release; leave it unset.", metadata={"field": path}
            )
        problem = _problem(rule, value)
        if problem:
            problems[path] = problem
    problems |= _unknown_values(request, rules, refused=problems.keys())
    if problems:
        refuse(problems)


def _unknown_values(
    message: Message, rules: Collection[str], *, refused: Collection[str], path: str = ""
) -> dict[str, str]:
    """Returns the problem of each enum field with a number that this version does not know, by its path.

    Inside messages only those fields count that have a rule: what else is there is not read, such as the state of a
    session that is sent back. Leaves out the fields that are refused already: they may have any number of values.
    """
    problems: dict[str, str] = {}
    for field, value in message.ListFields():
        name = path + field.name
        if name in refused:
            continue
        if field.enum_type is not None and (not path or name in rules):
            known = field.enum_type.values_by_number
            unknown = [number for number in (value if field.is_repeated else (value,)) if number not in known]
            if unknown:
                problems[name] = f"{unknown[0]} is not a value of {field.enum_type.name}"
        elif field.message_type is not None and not field.is_repeated:
            problems |= _unknown_values(value, rules, refused=refused, path=f"{name}.")
    return problems


def refuse(problems: Mapping[str, str]) -> NoReturn:
    """Raises InvalidRequest with these fields."""
    text = "; ".join(f"{path} {problem}" for path, problem in problems.items())
    raise InvalidRequest(f"The request is not valid: {text}.", fields=problems)


def time(request: Message, field: str) -> datetime:
    """Returns the time in this field. Refuses what is not a time."""
    value: Timestamp = getattr(request, field)
    try:
        return value.ToDatetime(tzinfo=UTC)
    except ValueError:
        refuse({field: "is not a time between the years 1 and 9999"})


def optional_time(request: Message, field: str) -> datetime | None:
    """Returns the time in this field, or None if it is unset. Refuses what is not a time."""
    return time(request, field) if request.HasField(field) else None


def is_descending(order_by: str, field: str) -> bool:
    """Returns True for an order by the field from the greatest value on. Refuses an order by anything else."""
    if order_by not in ("", field, f"{field} desc"):
        refuse({"order_by": f"must be {field} or {field} desc"})
    return order_by.endswith(" desc")


def _at(message: Message, path: str) -> tuple[bool, object]:
    """Returns whether the message that has the field is set, and the field's value; None for an unset message field."""
    name, _, rest = path.partition(".")
    field = message.DESCRIPTOR.fields_by_name[name]
    single_message = field.message_type is not None and not field.is_repeated
    if single_message and not message.HasField(name):
        return not rest, None
    value = getattr(message, name)
    return _at(value, rest) if rest else (True, value)


def _problem(rule: Rule, value: object) -> str:
    """Returns what is wrong with a value, or an empty text."""
    if rule.required and not value:
        return "is required"
    if value is None:
        return ""
    if isinstance(value, str):
        return _text_problem(rule, value)
    if rule.min_value is not None and isinstance(value, int) and value < rule.min_value:
        return f"must be at least {rule.min_value}"
    if rule.max_seconds:
        return _wait_problem(rule.max_seconds, value)
    entries = len(value.paths if isinstance(value, FieldMask) else value) if rule.max_items else 0  # type: ignore[arg-type]
    return f"has {entries} entries; at most {rule.max_items} are allowed" if entries > rule.max_items else ""


def _text_problem(rule: Rule, value: str) -> str:
    if rule.max_length and len(value) > rule.max_length:
        return f"has {len(value)} characters; at most {rule.max_length} are allowed"
    if value and rule.pattern is not None and not rule.pattern.fullmatch(value):
        return f"must match {rule.pattern.pattern}"
    return ""


def _wait_problem(max_seconds: int, value: object) -> str:
    seconds = getattr(value, "seconds", 0) + getattr(value, "nanos", 0) / 1e9
    return "" if 0 <= seconds <= max_seconds else f"must be between 0 and {max_seconds} s"
