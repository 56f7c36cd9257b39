"""`make chaos-mutants`: broken versions of the service, each of which must be caught."""
