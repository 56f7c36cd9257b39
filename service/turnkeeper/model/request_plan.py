"""What one call sends, and what it sends instead after its server has refused that."""

from collections.abc import Mapping
from dataclasses import replace

from turnkeeper.domain.message import DoubtfulMessage
from turnkeeper.model.contract import ModelRequest
from turnkeeper.model.message_forms import MessageForm, forms_of, has_kept, in_form
from turnkeeper.model.openai_failure import ReportedFailure, may_refuse, may_refuse_messages, names_messages
from turnkeeper.model.openai_request import body_of
from turnkeeper.model.request_shape import NEEDED, PLAIN_CALLS, RequestShape


class RequestPlan:
    """The fields and the form of the messages of one call."""

    def __init__(
        self,
        request: ModelRequest,
        *,
        shape: RequestShape,
        known: frozenset[str],
        origin: str,
        extra: Mapping[str, object],
    ) -> None:
        """`known` is what the server has refused before. `origin`, `extra`: see `body_of`."""
        self._request = request
        self._shape = shape
        self._known = known
        self._origin = origin
        self._extra = extra
        self._form = MessageForm.BARE if PLAIN_CALLS in known else MessageForm.WHOLE
        self._forms: list[MessageForm] | None = None
        self._sent: frozenset[str] = frozenset()
        self.refused: tuple[str, ...] = ()
        """The fields that the server has refused in this call."""

    def body(self) -> dict[str, object]:
        """Returns the body to send."""
        request = self._request
        if self._form is not MessageForm.WHOLE:
            request = replace(request, messages=tuple(in_form(request.messages, self._form)))
        shape = self._shape.without(self._known - {PLAIN_CALLS} | set(self.refused))
        body = body_of(
            request, limit_field=shape.limit_field, origin=self._origin, omit=shape.omitted, extra=self._extra
        )
        self._sent = frozenset(body)
        return body

    def changes_after(self, failed: ReportedFailure) -> bool:
        """Changes what is sent after a refusal. Returns False if the server refused nothing that can be changed."""
        by_field = may_refuse(failed) and not names_messages(failed)
        more = failed.report.refused(self._sent - NEEDED) if by_field else ()
        if more:
            self.refused = (*self.refused, *more)
            return True
        if not may_refuse_messages(failed):
            return False
        if self._forms is None:
            first = self._form
            self._forms = [form for form in forms_of(self._request.messages) if form is not first]
        if not self._forms:
            return False
        self._form = self._forms.pop(0)
        return True

    def learnt(self) -> frozenset[str]:
        """Returns what the server refuses, once it has answered.

        That it refuses what it sent itself is certain only if nothing else in the messages was different.
        """
        messages = self._request.messages
        is_plain = self._forms is not None and self._form is MessageForm.BARE
        is_doubtful = any(isinstance(message, DoubtfulMessage) for message in messages)
        if is_plain and not is_doubtful and has_kept(messages, self._origin):
            return frozenset({*self.refused, PLAIN_CALLS})
        return frozenset(self.refused)
