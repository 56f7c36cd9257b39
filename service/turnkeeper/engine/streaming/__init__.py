"""Delivers a session's events to its watchers: the log first, then the live tail with previews.

It reads the log and gets what this replica commits; it decides nothing about a turn. Changes of other replicas come
through `engine/replica`.
"""
