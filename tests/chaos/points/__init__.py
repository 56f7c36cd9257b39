"""`make chaos-points`: a server is killed, or frozen, at every fault point, again and again."""
