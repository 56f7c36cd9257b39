"""The jobs of the load generator."""
