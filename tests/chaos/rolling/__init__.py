"""`make chaos-rolling`: three replicas are replaced one after the other, twice, under load."""
