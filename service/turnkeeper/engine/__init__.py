"""The engine: the verbs of the service, a module a noun, and the rooms below them. It knows no gRPC and no MongoDB."""
