"""The engine: the verbs of the service, one module for each noun, and the rooms below them. No gRPC, no MongoDB."""
