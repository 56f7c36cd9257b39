"""`make chaos-points`: kills or freezes a server at every fault point, several times."""
