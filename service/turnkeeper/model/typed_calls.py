"""A scripted model for one's own tools: it calls the tool whose name and arguments the message has.

`refund A-17 1990` calls the tool `refund`; `refund order=A-17 cents=1990` is the same. It needs no script, because the
request itself has the tools and the names of their arguments. Nothing else of a message is understood.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from turnkeeper.model.playback import ChatRequest, Player
from turnkeeper.model.script import Reply, Script, ScriptedCall

_NAMED: Final = re.compile(r"(\w+)=(.*)", re.DOTALL)
_PAUSE: Final = timedelta(milliseconds=20)
_SAMPLES: Final[Mapping[str, str]] = {"string": "TEXT", "integer": "5", "number": "5", "boolean": "true"}
"""What stands for an argument of a type in the example of a call."""


class TypedCalls:
    """Answers with the call that a message has, after the rules of a script."""

    def __init__(self, script: Script) -> None:
        """Rules whose tools a request does not offer do not apply to it."""
        self._replies = script.replies

    def choose(self, chat: ChatRequest) -> tuple[int, Reply]:
        """Returns the script's reply, a call, the tool's answer, or what can be written."""
        fit = [reply for reply in self._replies if all(call.name in chat.tools for call in reply.tool_calls)]
        if (scripted := Player(Script(replies=tuple(fit))).choose(chat)) is not None:
            return scripted
        if chat.tool_results:
            return 0, Reply(text="The tool answered: {tool_result}", delay=_PAUSE)
        call = _call(chat)
        if call is not None:
            return 0, Reply(tool_calls=(call,))
        return 0, Reply(text=_help(chat.tools), delay=_PAUSE)


def _call(chat: ChatRequest) -> ScriptedCall | None:
    """Returns the call that the message has; None if it begins with no tool's name, or has too many words."""
    name, _, rest = chat.user.strip().partition(" ")
    schema = chat.tools.get(name)
    if schema is None:
        return None
    arguments = _arguments(rest, _in_order(schema))
    return None if arguments is None else ScriptedCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False))


def _in_order(schema: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Returns the properties: those that are needed first, in the order of the tool's signature."""
    properties: Mapping[str, Mapping[str, Any]] = schema.get("properties", {})
    names = dict.fromkeys([*schema.get("required", []), *properties])
    return {name: properties.get(name, {}) for name in names}


def _arguments(text: str, properties: Mapping[str, Mapping[str, Any]]) -> dict[str, object] | None:
    """Returns the arguments by name: those that are named, then the others in order. None if there are too many.

    The last argument takes all words that are left if it is a text.
    """
    try:
        words = shlex.split(text)
    except ValueError:  # a quote without its end
        words = text.split()
    given: dict[str, object] = {}
    loose: list[str] = []
    for word in words:
        match = _NAMED.fullmatch(word)
        if match and match[1] in properties:
            given[match[1]] = _value(match[2], properties[match[1]])
        else:
            loose.append(word)
    names = [name for name in properties if name not in given]
    if len(loose) > len(names):
        if not names or properties[names[-1]].get("type") != "string":
            return None
        loose[len(names) - 1 :] = [" ".join(loose[len(names) - 1 :])]
    return {**given, **{name: _value(word, properties[name]) for name, word in zip(names, loose, strict=False)}}


def _value(word: str, schema: Mapping[str, Any]) -> object:
    """Returns the word as a value of the schema's type; as text if it is none."""
    if schema.get("type") == "string":
        return word
    try:
        value: object = json.loads(word)
    except ValueError:
        return word
    return value


def _help(tools: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what the model understands, as an example of a call of each tool."""
    calls = [example(name, schema) for name, schema in tools.items()]
    if not calls:
        return "I am a script, not a real model. This agent has no tools that I could call."
    lines = "\n".join(f"- `{call}`" for call in calls)
    return f"I am a script, not a real model. I call a tool when you write its name and its arguments:\n\n{lines}"


def example(name: str, schema: Mapping[str, Any]) -> str:
    """Returns a message that calls the tool with the arguments that it needs."""
    needed: Sequence[str] = schema.get("required", [])
    properties = schema.get("properties", {})
    samples = (_SAMPLES.get(properties.get(argument, {}).get("type", ""), "{}") for argument in needed)
    words = (argument.upper() if sample == "TEXT" else sample for argument, sample in zip(needed, samples, strict=True))
    return " ".join([name, *words])
