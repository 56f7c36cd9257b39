"""The commands that use a service over its Python client. `serve` and the probes import nothing of this room."""
