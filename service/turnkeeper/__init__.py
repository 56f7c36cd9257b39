"""Turnkeeper keeps the turns of agent conversations: a gRPC service over MongoDB."""
