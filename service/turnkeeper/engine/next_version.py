"""What a coming version may add to a turn's steps, added by this one: for tests of two versions at once (I17)."""

from collections.abc import Callable

from turnkeeper.domain.event import ForeignPayload, MessageCompleted
from turnkeeper.engine.draft import Draft

KIND = "message_annotated"
"""An event that this version does not know, and may ignore."""


def additions(schema: int) -> Callable[[Draft], None]:
    """Beside each whole message an event of its own. A turn that asks for tools is its own from there on."""

    def add(draft: Draft) -> None:
        said = [event.payload for event in draft.events if isinstance(event.payload, MessageCompleted)]
        if not said:
            return
        draft.say(ForeignPayload(kind=KIND, text=f"by schema {schema}"), turn=draft.turn)
        if any(message.tool_requests for message in said):
            draft.change_head(needs=schema)

    return add
