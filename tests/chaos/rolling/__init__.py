"""`make chaos-rolling`: replaces three replicas one after the other, twice, under load."""
