"""Broken versions of the way to tool servers."""

from dataclasses import replace

import grpc

from turnkeeper.domain.tool import ReconciledState, ToolClass, ToolSpec
from turnkeeper.tools.catalogue import Catalogue, CatalogueEntry
from turnkeeper.tools.contract import NotStarted, OutcomeUnknown, Reconciled, ToolContext
from turnkeeper.tools.remote.source import RemoteTools

_call = RemoteTools.call
_stated = Catalogue.stated


def not_started_is_no_promise() -> None:
    """Takes a call whose result is missing for one that did not start, without a promise of its server."""

    async def reconcile(self: RemoteTools, name: str, context: ToolContext) -> Reconciled:
        return Reconciled(state=ReconciledState.NOT_STARTED)

    RemoteTools.reconcile = reconcile  # type: ignore[method-assign]


def unavailable_is_never_left() -> None:
    """Takes UNAVAILABLE for the proof that a call never left."""

    async def call(self: RemoteTools, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        try:
            return await _call(self, name, arguments, context)
        except OutcomeUnknown as unknown:
            if grpc.StatusCode.UNAVAILABLE.name in str(unknown):
                raise NotStarted("The server cannot be reached; the tool did not run.") from None
            raise

    RemoteTools.call = call  # type: ignore[method-assign]


def annotation_that_loosens() -> None:
    """Believes a server that its tool reads only, where the catalogue has no class: it runs without a person."""

    def stated(self: Catalogue, spec: ToolSpec) -> tuple[ToolSpec, CatalogueEntry] | None:
        known = _stated(self, spec)
        if known is None or not self.is_foreign(spec.source):
            return known
        tool, entry = known
        if entry.tool_class is None and spec.tool_class is ToolClass.READ_ONLY:
            tool = replace(tool, tool_class=ToolClass.READ_ONLY, asks=spec.asks)
        return tool, entry

    Catalogue.stated = stated  # type: ignore[method-assign]


TOOL_PATCHES = (not_started_is_no_promise, unavailable_is_never_left, annotation_that_loosens)
