"""What is counted of approvals: a part of `metrics.Metrics`, which makes the instruments."""

from turnkeeper.telemetry.labels import Labelled


class ApprovalMetrics:
    """The methods are safe to call whether or not anything is exported."""

    _approvals: Labelled
    _decision_time: Labelled
    _inbox_resets: Labelled

    def approval(self, decision: str) -> None:
        """Counts an approval that was decided, expired or was withdrawn."""
        self._approvals(1, decision)

    def decision_time(self, seconds: float) -> None:
        """Records the time from an approval's request to its decision."""
        self._decision_time(seconds)

    def inbox_reset(self, reason: str) -> None:
        """Counts a watcher of approvals that begins with a snapshot again."""
        self._inbox_resets(1, reason)
