"""The background jobs of a replica, one of each: they receive other replicas' changes, and care for what has no owner.

Heartbeat, sweeper and janitor keep the database in order. The change listener, the preview receiver and the preview
publisher connect this replica's feeds and worker with the other replicas. None of them runs a turn.
"""
