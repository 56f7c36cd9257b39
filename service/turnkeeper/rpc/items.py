"""The items of a call that does many things, each by itself: each is checked, charged and put on record as a call."""

import logging
from typing import Any

from turnkeeper.errors import InternalError, SessionError
from turnkeeper.limits.charge import repeated
from turnkeeper.rpc import validation
from turnkeeper.rpc.context import Context, Run
from turnkeeper.rpc.limits import LimitCheck, limited_method
from turnkeeper.rpc.refusals import CertainRefusals
from turnkeeper.rpc.refused_calls import RefusedCalls
from turnkeeper.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class Items:
    """Makes an item of a call as the boundary makes a whole call of the method that does one."""

    def __init__(
        self, *, limits: LimitCheck, certain_refusals: CertainRefusals, refused_calls: RefusedCalls, metrics: Metrics
    ) -> None:
        self._limits = limits
        self._certain_refusals = certain_refusals
        self._refused_calls = refused_calls
        self._metrics = metrics

    def begin(self) -> None:
        """Gives back what the whole call has paid: each item pays for itself."""
        repeated()

    async def call(self, method: Run, request: Any, context: Context, *, name: str) -> Any:
        """Returns the response to an item. Raises SessionError, of which the metrics and the audit trail then know.

        `name` is that of our method that does one item: SERVICE/METHOD.
        """
        try:
            validation.check(request)
            self._limits.charge_item(context, limited_method(name.rpartition("/")[2], is_stream=False))
            return await self._certain_refusals.checked(method)(request, context)
        except Exception as error:
            shown = error if isinstance(error, SessionError) else InternalError()
            if shown is not error:
                logger.exception("an item of %s failed: a defect; the caller gets INTERNAL_ERROR", name)
            self._metrics.error(shown.code)
            self._refused_calls.note(shown, context, name)
            if shown is error:
                raise
            raise shown from None
