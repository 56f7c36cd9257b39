"""What a coming version may add to a turn's steps, added by this one: for tests of two versions at once (I17)."""

from collections.abc import Callable

from turnkeeper.domain.event import ForeignPayload, MessageCompleted
from turnkeeper.engine.rules.unit_of_work import UnitOfWork

KIND = "message_annotated"
"""An event that this version does not know, and may ignore."""


def additions(schema: int) -> Callable[[UnitOfWork], None]:
    """Beside each whole message an event of its own. A turn that asks for tools is its own from there on."""

    def add(uow: UnitOfWork) -> None:
        said = [event.payload for event in uow.events if isinstance(event.payload, MessageCompleted)]
        if not said:
            return
        uow.append(ForeignPayload(kind=KIND, text=f"by schema {schema}"), turn=uow.turn)
        if any(message.tool_requests for message in said):
            uow.change_head(needs=schema)

    return add
