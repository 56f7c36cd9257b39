"""How a replica signs what its own worker writes, so that its change stream can filter that out."""


def signatures(replica: str) -> tuple[str, str]:
    """Returns the two values that a replica uses in turn. The stream shows changed fields only: one value that stays
    the same would not be among them."""
    return f"{replica} 0", f"{replica} 1"
