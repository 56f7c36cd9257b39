"""Tools of the client's own tests; not part of the distribution."""
