"""Decides at a call's headers whether the replica does its work: beyond its capacity it finishes what it took."""
