"""What later requests have in place of messages that a model's server refused.

One refused request must not end its session: without this, each later request would hold the same message again.
"""

from dataclasses import replace
from enum import StrEnum
from typing import Final

from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.domain.message import DoubtfulMessage, Message, Role

LEFT_OUT: Final = "[Left out: the model's server refused it.]"
CUT_SHORT: Final = "[… Cut here: the model's server refused it as too long.]"
"""What a model reads in place of a refused text, and after the beginning of one that was too long."""
_LONGEST: Final = 1024
"""Characters that stay of a text that may have been too long."""


class Refused(StrEnum):
    """Why a server refused a turn's request: its content, its length, or something that it did not name."""

    CONTENT = "CONTENT"
    LENGTH = "LENGTH"
    UNNAMED = "UNNAMED"


def refused_of(error: ErrorDetail) -> Refused | None:
    """Returns why the server refused the request of a turn that failed with this error; None if it did not."""
    reason, by_status = error.metadata.get("reason", ""), bool(error.metadata.get("http_status"))
    before_output = error.metadata.get("output") == "none"
    match error.code:
        case Code.LLM_TOKEN_LIMIT if reason == "CONTEXT_LENGTH":
            return Refused.LENGTH
        case Code.LLM_CONTENT_FILTER if by_status or before_output:
            return Refused.CONTENT
        case Code.AGENT_CONFIG_ERROR if by_status and reason == "BAD_REQUEST":
            return Refused.UNNAMED
        case _:
            return None


def sent_form(message: Message, refused: Refused | None) -> Message:
    """Returns a message of a turn as later requests have it. What the model itself wrote stays as it is."""
    if refused is None or message.role is Role.ASSISTANT:
        return message
    match refused:
        case Refused.CONTENT:
            return replace(message, text=LEFT_OUT)
        case Refused.LENGTH if len(message.text) > _LONGEST:
            return replace(message, text=f"{message.text[:_LONGEST]} {CUT_SHORT}")
        case Refused.UNNAMED:
            return DoubtfulMessage(role=message.role, text=message.text, tool_call_id=message.tool_call_id)
        case _:
            return message
